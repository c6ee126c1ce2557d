"""The documentation: every printed command composes and passes the checks, the examples run, the links lead on."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from invocation import Terminal

from app.cli import compose, session
from app.config import command_line
from app.config.check import check, schema_keys
from app.config.schema import GROUPS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("README*.md")])
EXTEND = (ROOT / "docs" / "extend.md").read_text()
NOT_JOBS = ("--help", "--cfg", "--info", "--shell-completion")


def commands(page: Path) -> list[list[str]]:
    """The words after `-m app` of every command line in the code blocks of a page."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    matches = [re.match(r"(?:python|torchrun .*) -m app(?: (.*))?$", line) for line in lines]
    return [shlex.split(match[1] or "", comments=True) for match in matches if match is not None]


def first_point(word: str) -> str:
    """An override, or the first of those that it sweeps over."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


@pytest.fixture
def examples(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A folder with the files of docs/extend.md in it."""
    python = re.findall(r"```python\n# mine\.py\n(.*?)```", EXTEND, re.S)
    files: dict[str, str | bytes] = {"mine.py": "\n\n".join(python)}
    files |= dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", EXTEND, re.S))
    # What the README and docs/hooks.md only mention.
    files["mypackage.py"] = (
        "from mine import SlowestStep\n\n\nclass MyHook(SlowestStep):\n    def __init__(self, every): ...\n"
    )
    terminal.write(files)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield terminal
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_composes_and_passes_the_checks(page: Path, examples: Terminal) -> None:
    for words in commands(page):
        line = command_line.split(words)
        outlined = page.name.startswith("README") and "mine." in str(words)  # docs/extend.md has the whole example
        if line.has(*NOT_JOBS) or outlined:
            continue
        with session(line) as (hydra, _):
            if line.has("--multirun"):
                compose(hydra, "config", line.settings, RunMode.MULTIRUN)
            settings = [first_point(word) for word in line.settings if not word.startswith("hydra")]
            assert check(compose(hydra, "config", settings, RunMode.RUN), settings) == [], words


def test_the_pages_print_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 60


@pytest.mark.parametrize(
    "words", commands(ROOT / "docs" / "extend.md"), ids=lambda words: " ".join(words)[:60].replace("/", "_")
)
def test_the_examples_of_extend_run(words: list[str], examples: Terminal) -> None:
    small = [] if "experiment=shapes" in words else ["data.limit_train=128", "data.limit_val=64"]
    outcome = examples.run(*words, "train.max_epochs=1", *small)
    outcome.says("done at epoch 1")
    assert outcome.code == 0


def test_the_tables_of_migration_name_real_keys() -> None:
    """Every `group.key` in the middle column exists in the schema."""
    known = {*schema_keys(), *(f"{group}.{name}" for group in ("hooks", "visualizer") for name in GROUPS[group])}
    groups = ("hooks.", "visualizer.", "train.", "optim.", "schedule.", "data.", "model.", "metrics.", "loss.")
    named = set(re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)(?==|`)", (ROOT / "docs" / "migration.md").read_text()))
    ours = {name for name in named if name.startswith((*groups, "env.", "logging.", "randomness."))}
    assert len(ours) > 50
    assert sorted(ours - known) == []


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_hook_and_option_is_mentioned() -> None:
    hooks = (ROOT / "docs" / "hooks.md").read_text()
    assert [name for name in GROUPS["hooks"] if f"`{name}`" not in hooks] == []
    data = (ROOT / "docs" / "data.md").read_text()
    assert [name for name in ("digits", "mnist", "folder", "fake", "custom") if f"`{name}`" not in data] == []
