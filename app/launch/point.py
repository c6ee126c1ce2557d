"""A point of a sweep: which overrides make it what it is, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

NOT_IDENTITY = (
    "resume",
    "name",
    "output_root",
    "check",
    "trusted_packages",
    "train.max_epochs",
    "train.max_iters",
    "data.num_workers",
    "data.pin_memory",
    "data.timeout",
    "hooks.checkpoint",
    "hooks.logger",
    "visualizer",
    "logging",
    "env",
)
"""Keys that may change when a point is continued; they name a point only where they are swept over."""

LONGEST_NAME = 96


class Setting(NamedTuple):
    """One override, parsed: `+hooks=ema` has the key `+hooks`, the value `ema`."""

    key: str
    value: Any


@cache
def parse(override: str) -> Setting:
    """Reads an override as Hydra does, so `lr=1e-1` and `lr=0.1` are the same setting."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

    parsed: Override = OverridesParser.create().parse_override(override)
    value = parsed.get_value_string() if parsed.is_sweep_override() else _plain(parsed.value())
    return Setting(parsed.get_key_element(), value)


def identity_keys(command_line: Iterable[str]) -> list[str]:
    """The keys on a command line that make a point, and those that it sweeps over, sorted."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(command_line))
    keys = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    return sorted(key for key, is_swept in keys.items() if is_swept or not _ignored(key))


def swept(overrides: Iterable[str], command_line: Iterable[str]) -> dict[str, Any]:
    """The settings of one job that are not plainly on the command line: the sweeper chose them. Sorted by key."""
    constant = {json.dumps(parse(override), default=str) for override in command_line}
    chosen = (parse(override) for override in overrides)
    return dict(sorted(setting for setting in chosen if json.dumps(setting, default=str) not in constant))


def identity(overrides: Iterable[str], axes: Mapping[str, Any]) -> str:
    """What makes a point this point, whatever the order of the overrides."""
    settings = (parse(override) for override in overrides)
    kept = {key: value for key, value in settings if key in axes or not _ignored(key)}
    return json.dumps(kept, sort_keys=True, default=str)


def is_seed(key: str) -> bool:
    """Whether an axis only repeats an experiment."""
    return key.rsplit(".", 1)[-1] == "seed"


def slug(axes: Mapping[str, Any], identity: str) -> str:
    """A folder name such as `lr-0.1__seed-3`: last part of each key, and its value.

    Holds only characters that neither a shell nor Hydra's grammar treats specially. Where a character had to be
    replaced or the name cut, the first 8 hex digits of the identity's SHA-1 are added.
    """
    settings = sorted((axes or json.loads(identity)).items())
    leaves = [_leaf(key) for key, _ in settings]
    words = [
        f"{leaf if leaves.count(leaf) == 1 else key.lstrip('+~')}-{_shown(value)}"
        for leaf, (key, value) in zip(leaves, settings, strict=True)
    ]
    exact = "__".join(words) or "default"
    safe = re.sub(r"[^A-Za-z0-9._+~-]", "-", exact)
    if safe == exact and len(safe) <= LONGEST_NAME and not safe.startswith((".", "-")):
        return safe
    return hashed(safe.lstrip(".-"), identity)


def hashed(name: str, identity: str) -> str:
    """`name`, cut if need be, with 8 hex digits that tell apart what it does not."""
    digest = hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 10]}__{digest}"


def _leaf(key: str) -> str:
    return re.split(r"[./]", key.lstrip("+~").split("@")[0])[-1]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_shown(item) for item in value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def _ignored(key: str) -> bool:
    bare = key.lstrip("+~")
    return any(bare == name or bare.startswith((f"{name}.", f"{name}@")) for name in NOT_IDENTITY)


def _plain(value: Any) -> Any:
    """Hydra's parsed value as JSON knows it; quotes do not count."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value.text if hasattr(value, "text") else value
