"""A field of the configuration: default, documentation, and the range or closed set of values that it may have."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def knob(
    default: Any,
    doc: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> Any:
    """A dataclass field documented by `doc`; `app.config.check` holds every configuration to its limits.

    Null is always allowed where the type allows it; bounds apply to each element of a list. A list or dict as `default`
    is copied for every config; a dataclass as `default` makes a section of keys.
    """
    limits = {"doc": doc, "gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    metadata = {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
