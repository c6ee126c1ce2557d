"""How values, ranges and types are written in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException


def listed(problems: Sequence[str]) -> str:
    """One message of all problems."""
    return "\n  - ".join([f"{len(problems)} problems", *problems]) if len(problems) > 1 else problems[0]


def show(value: Any) -> str:
    """A value as it is written in YAML."""
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else f"{value}"
    )


def wrong_type(error: OmegaConfBaseException, prefix: str = "") -> str:
    """What a value should have been, from OmegaConf's words."""
    text = str(error).splitlines()[0]
    for pattern, words in (
        (r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", "must be {3}, got {1!r}"),
        (r"Value '(.*)' of type '(\w+)' is incompatible with type hint '(.*)'", "must be {3}, got {1!r}"),
        (r"Invalid type assigned: (\w+) is not a subclass of (\w+)\. value: (.*)", "has keys of its own; got {3!r}"),
        (r"Invalid value assigned: (\w+) is not a (.*)\.", "must be a {2}, got a {1}"),
        (r"Value '(.*)' is not a valid bool", "must be true or false, got {1!r}"),
        (r"field '(.*)' is not Optional", "must not be null"),
    ):  # fmt: skip
        found = re.match(pattern, text)
        if found:
            return f"{prefix}{error.full_key} {words.format('', *map(_type_name, found.groups()))}"
    return f"{prefix}{error.full_key}: {text}"


def _type_name(word: str) -> str:
    names = {
        "Integer": "a whole number",
        "Float": "a number",
        "Boolean": "true or false",
        "ListConfig, list or tuple": "list",
        "Union[bool, str]": "true, false or a word",
        "Union[int, str]": "a whole number or a word",
    }
    return names.get(word, word)
