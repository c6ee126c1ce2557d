"""The kit of every page: one file that opens without a network, drawn by its own script from a list of blocks.

A block is a mapping with a `kind`; the kinds and their entries are the functions of `BLOCKS` in page.js. Text goes into
a block as it is: the script puts it into the page as text, never as HTML. Lines and matrices are drawn in SVG by the
same script: a plotting library would be 100 times the size of the rest of a page, in every point of a sweep again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

Block = Mapping[str, Any]


def render(title: str, words: Iterable[str | None], blocks: Iterable[Block], badge: str | None = None) -> str:
    """Render a page: its title, a word on its state, a line of words, and its blocks."""
    content = {"title": title, "badge": badge, "words": list(words), "blocks": list(blocks)}
    parts = {"title": escape(title), "style": resource("page.css"), "script": resource("page.js")}
    return Template(resource("page.html")).substitute(parts, data=as_script(content))


@cache
def resource(name: str) -> str:
    """A file beside this one."""
    return files("app.visualizer").joinpath(name).read_text(encoding="utf-8")


def as_script(value: Any) -> str:
    """Render JSON that can stand inside a script element."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


def tile(label: str, value: str, note: str = "") -> dict[str, str]:
    """One of the few numbers at the top of a page."""
    return {"label": label, "value": value, "note": note}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> Block:
    """A table that a click on a heading sorts; a cell is text, a number, or {text, href} or {text, chip}."""
    return {"kind": "table", "columns": list(columns), "rows": [list(row) for row in rows], **more}


def rounded(value: float | None, digits: int = 6) -> float | None:
    """`value` in as many digits as a plot shows: a page is smaller so."""
    return None if value is None else float(f"{value:.{digits}g}")
