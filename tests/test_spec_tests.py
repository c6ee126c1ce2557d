"""docs/spec-tests.md names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_named_test_exists() -> None:
    text = (TESTS.parent / "docs" / "spec-tests.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w*)`", text)
    assert len(named) > 150
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (TESTS / path).exists() or f"def {name}(" not in (TESTS / path).read_text()
    ]
    assert missing == []
