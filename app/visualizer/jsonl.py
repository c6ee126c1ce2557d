"""Files of one JSON object a line that survive a kill between any two lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.files import sync_folder, warn_once, write_durable

BLOCK_BYTES = 1 << 16

Kinds = Mapping[str, type | tuple[type, ...]]
"""Entries that a row must have beside its step, and their types."""
SCALARS: Kinds = {"epoch": int, "time": (int, float), "seconds": (int, float)}
IMAGES: Kinds = {"name": str, "files": list, "captions": list}
TABLE: Kinds = {"name": str, "columns": list, "rows": list}


def number(value: float) -> float | str:
    """Write `value` as JSON can hold it: what is not finite as "NaN", "Infinity", "-Infinity", which float() reads."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class LineWriter:
    """Append lines to `path`, each with one system call: a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: int | None = None
        self.torn = False
        self.named = False
        """The file's name in its folder is on the disk too."""

    def write(self, row: dict[str, Any]) -> None:
        """Append `row`. After a failed write (a full disk) the next one starts on a new line."""
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode(errors="replace") + b"\n"
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            cut_torn_line(self.file)
        if self.torn:
            line = b"\n" + line
        self.torn = True
        if os.write(self.file, line) < len(line):
            raise OSError(f"{self.path} could not be written whole; is the disk full?")
        self.torn = False

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows of later steps, and what cannot be read, durably; return the dropped rows."""
        self.close()
        found = list(lines(self.path))
        kept = b"".join(line + b"\n" for line, row in found if row["step"] <= step)
        if found and kept != self.path.read_bytes():
            write_durable(self.path, kept)
        return [row for _, row in found if row["step"] > step]

    def sync(self) -> None:
        """Wait until every row so far is on the disk; may be called from any thread."""
        try:
            # A descriptor of its own: the writing thread may close the other one meanwhile.
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(file)
        finally:
            os.close(file)
        if not self.named:
            sync_folder(self.path.parent)
            sync_folder(self.path.parent.parent)  # the folder itself is as new as the file
            self.named = True

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


def cut_torn_line(file: int) -> None:
    """Cut what a crash left behind the last whole line: a row appended to it would be lost as well."""
    end = size = os.fstat(file).st_size
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)


def read(path: Path, kinds: Kinds | None = None, having: Sequence[bytes] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of `path`, of lines that hold one of `having` where it is given; see `lines`."""
    return (row for _, row in lines(path, kinds, having))


def lines(
    path: Path, kinds: Kinds | None = None, having: Sequence[bytes] = ()
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of `path` and its row; nothing if there is no such file.

    A row has a `step`, and an entry of each name in `kinds` that is of its type. Any other line (a crash tears lines,
    and fills the end of a file with zeros) is left out, with one warning a file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        return warn_once(path, error.strerror or str(error))
    kinds = {"step": int, **(kinds or {})}
    for number, line in enumerate(content.splitlines(), 1):
        if having and not any(word in line for word in having):
            continue  # quicker than to read what nobody wants
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
            yield line, row
        else:
            warn_once(path, f"line {number} is damaged")
    if not content:
        warn_once(path, "it is empty")


def scalars(path: Path, until: int) -> Iterator[tuple[dict[str, float], int, int]]:
    """Yield (values, step, epoch) of the rows of `scalars.jsonl` up to step `until`."""
    for row in read(path, {"epoch": int}):
        if row["step"] <= until:
            yield values(row), row["step"], row["epoch"]


def values(row: Mapping[str, Any]) -> dict[str, float]:
    """The logged values of a row of `scalars.jsonl`: what has a name with a slash, and is a number."""
    found = {}
    for name, value in row.items():
        if "/" in name and isinstance(value, (int, float, str)):
            with suppress(ValueError):
                found[name] = float(value)
    return found


def picture_files(folder: Path, row: Mapping[str, Any]) -> list[Path]:
    """The files of a row of images.jsonl; none outside of `images/`, whoever wrote the row."""
    files = [folder / str(file) for file in row.get("files", ())]
    return [file for file in files if file.resolve().is_relative_to((folder / "images").resolve())]
