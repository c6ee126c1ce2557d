"""From what was typed to what Hydra is given: flags first, settings in its grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.config.check import home_of
from app.config.schema import ADDED
from app.config.schema.hooks import HOOKS
from app.config.schema.runtime import BACKENDS
from app.errors import ConfigError
from app.suggest import did_you_mean

_APP = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_APP / "conf", _APP.parent / "conf") if path.is_dir())
"""The folder of config files: beside the package in a checkout, inside it in a wheel."""
FLAGS = {
    "--help": 0, "-h": 0, "--hydra-help": 0, "--version": 0, "--resolve": 0, "--run": 0, "-r": 0,
    "--multirun": 0, "-m": 0, "--shell-completion": 0, "-sc": 0, "--cfg": 1, "-c": 1, "--package": 1, "-p": 1,
    "--config-path": 1, "-cp": 1, "--config-name": 1, "-cn": 1, "--config-dir": 1, "-cd": 1, "--info": 1, "-i": 1,
}  # fmt: skip
"""Hydra's flags, and how many values each takes."""
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OWN_CLASS = re.compile(r"(\+{0,2})(hooks|visualizer)\.(\w+)\._target_=")


@dataclass
class CommandLine:
    """What was typed, in order."""

    flags: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        """True when one of these flags was given."""
        return any(name in self.flags for name in names)


def split(arguments: Sequence[str]) -> CommandLine:
    """Sorts flags from settings, wherever they stand.

    Raises:
        ConfigError: an unknown flag, or one without its value.
    """
    line = CommandLine()
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            line.settings.append(word)
        elif name not in FLAGS:
            raise ConfigError(_unknown_flag(word, queue[0] if queue and queue[0].isalnum() else "…"))
        elif name in ("--info", "-i"):
            follows = queue and queue[0] in INFOS
            line.flags += [name, value or (queue.pop(0) if follows else "all")]
        elif FLAGS[name] and not equals:
            if not queue:
                raise ConfigError(f"{name} needs a value")
            line.flags += [name, queue.pop(0)]
        else:
            line.flags += [name, value] if FLAGS[name] else [name]
    return line


def _unknown_flag(word: str, following: str) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    key = home_of(name.replace("-", "_"))
    if key is not None or equals:
        return f"unknown option '{word}'; settings have no dashes: {key or name}={value if equals else following}"
    return f"unknown option '{word}'{did_you_mean(word, FLAGS)} (settings are KEY=VALUE without dashes; see --help)"


def checked_settings(settings: Sequence[str]) -> list[str]:
    """Settings that are at least KEY=VALUE, a user's own hooks and backends added whole.

    `hooks.mine._target_=pkg.Hook hooks.mine.a=1` needs a `+` each in Hydra's grammar, since `mine` is new.

    Raises:
        ConfigError: a word that is no setting.
    """
    for position, word in enumerate(settings):
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(_not_a_setting(word, settings[:position], settings[position + 1 :]))
        if word.startswith("=") or (word.endswith("=") and word.count("=") == 1 and settings[position + 1 :]):
            raise ConfigError(f"'{word}' is not KEY=VALUE; write it without spaces around the =")
    own = {
        (match[2], match[3])
        for word in settings
        if (match := OWN_CLASS.match(word)) and match[3] not in {"hooks": HOOKS, "visualizer": BACKENDS}[match[2]]
    }
    return _joined([_quoted(_added(word, own)) for word in settings])


def _joined(settings: list[str]) -> list[str]:
    """`hooks=[ema] +hooks=early_stop` as `hooks=[ema,early_stop]`: Hydra drops one of the two without a word."""
    for group in ADDED:
        names = ", ".join(ADDED[group])
        if f"{group}=null" in settings or f"~{group}" in settings:
            raise ConfigError(f"{group}=null: {names} are always there; leave one out with {group}.NAME=null")
        chosen = next((word for word in settings if word.startswith(f"{group}=")), None)
        added = next((word for word in settings if word.startswith(f"+{group}=")), None)
        if chosen is None or added is None:
            continue
        lists = [re.fullmatch(r"\[?([\w/, -]*)\]?", word.partition("=")[2]) for word in (chosen, added)]
        if not all(lists) or any("," in word and "[" not in word for word in (chosen, added)):
            raise ConfigError(f"{group} is chosen more than once; give it once, as {group}=[…,…]")
        together = ",".join(found[1] for found in lists if found and found[1])
        settings = [f"{group}=[{together}]" if word == chosen else word for word in settings if word != added]
    return settings


def _quoted(word: str) -> str:
    """An address or path with characters that Hydra's grammar has no use for needs no quotes from the user."""
    key, _, value = word.partition("=")
    special = re.search(r"[=#&;!]", value) and not re.search(r"['\"\[\]{}(),$\\]", value)
    braces = re.fullmatch(r"[\w./-]+\{\w*\}[\w./{}-]*", value)  # epoch_{}
    return f'{key}="{value}"' if special or braces else word


def _added(word: str, own: set[tuple[str, str]]) -> str:
    key = word.lstrip("+").partition("=")[0].split(".")
    return f"++{word.lstrip('+')}" if len(key) > 2 and (key[0], key[1]) in own and word[0] != "~" else word


def _not_a_setting(word: str, before: Sequence[str], following: Sequence[str]) -> str:
    if word in ("train", "test"):
        return f"'{word}' is not KEY=VALUE; did you mean 'mode={word}'?"
    if before and (before[-1].endswith(",") or not re.match(r"[A-Za-z_+]", word)):
        several = f"{before[-1].rstrip(',')},{word.lstrip(',')}"
        return f"'{word}' is not KEY=VALUE; several values of one key are written without spaces: {several}"
    value = following[0].lstrip("=") or (following[1] if len(following) > 1 else "…") if following else "…"
    return f"'{word}' is not KEY=VALUE; write {word}={value if '=' not in value else '…'}, without spaces"


def for_rank(settings: Sequence[str], number: int) -> list[str]:
    """The settings of one rank: only rank 0 makes the run folder and writes logs and snapshots."""
    if number == 0:
        return list(settings)
    ours = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.run.dir=.")
    keys = tuple(f"{word.partition('=')[0]}=" for word in ours)
    return [*(word for word in settings if not word.startswith(keys)), *ours]
