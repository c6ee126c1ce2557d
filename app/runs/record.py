"""The configuration as plain values, for the record, and what changed between two of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MISSING = object()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve all values of `cfg`, except those that read the environment: they may be secrets."""
    value = _plain(cfg)
    assert isinstance(value, dict)
    return value


def values(cfg: DictConfig) -> dict[str, Any]:
    """Resolve all values of `cfg`, the environment's too: for use, never to be written anywhere."""
    value = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(value, dict)
    return {str(key): item for key, item in value.items()}


def _plain(node: Any) -> Any:
    if isinstance(node, DictConfig):
        return None if node._is_none() else {str(key): _item(node, key) for key in node}
    if isinstance(node, ListConfig):
        return None if node._is_none() else [_item(node, index) for index in range(len(node))]
    return node


def _item(parent: DictConfig | ListConfig, key: Any) -> Any:
    if OmegaConf.is_missing(parent, key):
        return "???"
    child = parent._get_node(key)
    raw = child._value() if child is not None and not isinstance(child, list) else None
    if isinstance(raw, str) and "oc.env" in raw:
        return raw
    try:
        return _plain(parent[key])
    except OmegaConfBaseException:
        return str(raw)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`key.sub.key`, value) of every leaf; an empty mapping is a leaf."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the leaves that differ: (key, old value, new value), the string `(absent)` for a missing one."""
    before, after = dict(flat(old)), dict(flat(new))
    keys = [*after, *(key for key in before if key not in after)]
    return [
        (key, before.get(key, "(absent)"), after.get(key, "(absent)"))
        for key in keys
        if before.get(key, MISSING) != after.get(key, MISSING)
    ]
