"""CSV that a spreadsheet shows as text: no cell of a stranger's words is taken for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def csv_text(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """The table as CSV; numbers stay numbers, words that begin as a formula does get a quote before them.

    That is what OWASP recommends against CSV injection. Control characters become visible: a terminal obeys them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(cell) for cell in row] for row in (columns, *rows))
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    harmless = NUMBER.fullmatch(value) or not FORMULA.match(value)
    return printable(value if harmless else f"'{value}")


def printable(text: str) -> str:
    """Show control characters as `\\x1b`, except a tab and a line break."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
