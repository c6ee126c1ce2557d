"""docs/spec-tests.md names tests that exist, and has a row for every key."""

import re
from pathlib import Path

from app.config.help import all_keys

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "spec-tests.md").read_text()
WHOLE_NAMES = ("hooks.", "visualizer.", "train.", "logging.", "randomness.", "env.", "loss.", "metrics.", "model.init.")
"""Keys that are written in full; those of the options of a group may share a row with the option."""


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w*)`", TEXT)
    assert len(named) > 350
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (TESTS / path).exists() or f"def {name}(" not in (TESTS / path).read_text()
    ]
    assert missing == []


def test_every_key_has_a_row() -> None:
    written = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)", TEXT))
    keys = {
        name for name, _ in all_keys() if name.startswith((*WHOLE_NAMES, "data.")) and not name.endswith(".priority")
    }
    of_one_option = {"data.name", "data.root", "data.size", "data.val_size", "data.num_classes", "data.channels"}
    assert sorted(keys - written - of_one_option) == []
