"""The schema's keys with what is written about them: type, default, range, text."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from app.config.limits import range_text
from app.config.wording import show


@dataclass(frozen=True)
class Key:
    """One documented key."""

    name: str
    type: str
    default: str
    limits: str
    doc: str


@cache
def keys_of(schema: type) -> tuple[Key, ...]:
    """The keys of a dataclass that are no sections, the class's own after the inherited ones."""
    return tuple(
        Key(
            field.name, _type_text(field), _default_text(field), _limits_text(field), str(field.metadata.get("doc", ""))
        )
        for field in fields(schema)
        if field.name != "_target_" and not is_dataclass(field.default_factory)
    )


def doc_of(field: Field[Any]) -> str:
    """The text that its knob has."""
    return str(field.metadata.get("doc", ""))


def _type_text(field: Field[Any]) -> str:
    text = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    text = re.sub(r"(?:typing\.)?Optional\[(.+)\]$", r"\1 | None", text)
    names = {
        "Any": "any",
        "bool": "true or false",
        "str": "text",
        "int": "whole number",
        "float": "number",
        "None": "null",
    }
    for word, replacement in (
        ("typing.", ""),
        ("list[", "list of "),
        ("dict[str, Any]", "mapping"),
        ("dict[str, str]", "mapping"),
        ("]", ""),
    ):
        text = text.replace(word, replacement)
    return " or ".join(" ".join(names.get(word, word) for word in part.split()) for part in text.split(" | "))


def _default_text(field: Field[Any]) -> str:
    value = (
        field.default
        if field.default is not MISSING
        else field.default_factory()
        if callable(field.default_factory)
        else None
    )
    if value == "???":
        return "(to be given)"
    return show(value) if not isinstance(value, (list, dict)) else str(value)


def _limits_text(field: Field[Any]) -> str:
    if "choices" in field.metadata:
        return "one of " + ", ".join(show(choice) for choice in field.metadata["choices"])
    return range_text(field.metadata) if field.metadata.keys() - {"doc"} else ""
