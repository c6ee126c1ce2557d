"""A dataclass field with a range or a closed set of values, which `app.config.check` holds every configuration to."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def knob(
    default: Any,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[object] | None = None,
) -> Any:
    """A field whose value must lie in a range or among `choices`; null is always allowed where the type allows it.

    Bounds apply to each element of a list. `default` may be a list or dict: every config gets its own copy.
    """
    limits = {"gt": gt, "ge": ge, "lt": lt, "le": le, "choices": choices}
    metadata = {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
