"""Is a value within the range or the choices of its knob (app/config/schema/knob.py)?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from app.config.wording import show
from app.suggest import did_you_mean


def check_limits(where: str, value: Any, limits: Mapping[str, Any]) -> Iterator[str]:
    """The problems of a plain value, or of each element of a list, with the limits of its knob."""
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from check_limits(f"{where}[{index}]", element, limits)
        return
    choices = limits.get("choices")
    if value is None:
        return
    if choices is not None and not any(value == choice and type(value) is type(choice) for choice in choices):
        shown = ", ".join(show(choice) for choice in choices)
        yield f"{where} must be one of {shown}; got {show(value)}{did_you_mean(str(value), map(str, choices))}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        within = (
            value > limits.get("gt", -math.inf)
            and value >= limits.get("ge", -math.inf)
            and value < limits.get("lt", math.inf)
            and value <= limits.get("le", math.inf)
        )
        if not within:
            yield f"{where} must be {range_text(limits)}, got {show(value)}"


def range_text(limits: Mapping[str, Any]) -> str:
    """`in (0, 1)`, `>= 1`, or `a finite number`."""
    low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    if low is not None and high is not None:
        return f"in {'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return next((f"{sign} {limits[name]}" for name, sign in signs.items() if name in limits), "a finite number")
