"""Text files of `path label` lines."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple

from app.data.listing import Listing
from app.errors import DataError

FEW_CLASSES = 1000
"""With more labels than that, most of which occur once, a column is taken for a label that is none."""


class Row(NamedTuple):
    """One line."""

    name: str
    """Of the image, relative to the root."""
    label: str
    place: str
    """Key, file and line number, for messages."""


def read_list(listing: Listing, path: str, key: str) -> list[Row]:
    """Read a list; `path` is relative to the root.

    Raises:
        DataError: it cannot be read, a line is none, or names an image that is not there.
    """
    base = listing.root if listing.archive is None else listing.root.parent
    place = base / path
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}: cannot read {place.absolute()}: {error}") from error
    known, rows = set(listing.files), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = str(PurePosixPath(name.strip()))
        if not label or name == ".":
            raise DataError(f"{key}: {place}:{number}: expected `path label`, got {line!r}")
        if name not in known:
            raise DataError(f"{key}: {place}:{number}: no image {listing.shown(name)}")
        rows.append(Row(name, label, f"{key}: {place}:{number}"))
    if not rows:
        raise DataError(f"{key}: {place.absolute()} names no images; expected lines of `path label`")
    return rows


def number_labels(rows: list[Row]) -> dict[str, int]:
    """The class index of each label, classes in order.

    Labels that count up densely from 0 or 1 are numbers; all others are names, in alphabetical order: no size is taken
    from a number that stands in a file, such as a date.

    Raises:
        DataError: the labels look like no classes.
    """
    labels = {row.label for row in rows}
    if len(labels) > FEW_CLASSES and 2 * len(labels) > len(rows):
        raise DataError(
            f"{rows[0].place}: {len(labels):,} different labels on {len(rows):,} lines, such as "
            f"{rows[0].label[:40]!r}: that is no class; expected lines of `path label`"
        )
    if all(label.isascii() and label.removeprefix("-").isdecimal() for label in labels):
        if negative := next((row for row in rows if row.label.startswith("-")), None):
            raise DataError(
                f"{negative.place}: label {negative.label} is negative; a label is a name, or a number from 0 on"
            )
        # Digits are compared as text, by length first: Python refuses to read a number of more than 4,300.
        ordered = sorted(labels, key=lambda label: (len(label), label))
        for first in (0, 1):
            if ordered == [str(number) for number in range(first, first + len(labels))]:
                return {label: index for index, label in enumerate(ordered)}
    return {label: index for index, label in enumerate(sorted(labels))}


def labelled(rows: list[Row], index: dict[str, int]) -> tuple[list[str], list[int]]:
    """Names of the images and their targets.

    Raises:
        DataError: a label that `index` does not know.
    """
    for row in rows:
        if row.label not in index:
            known = ", ".join(list(index)[:5]) + (", …" if len(index) > 5 else "")
            raise DataError(
                f"{row.place}: label {row.label} is none of the {len(index)} classes of data.train_list: {known}"
            )
    return [row.name for row in rows], [index[row.label] for row in rows]
