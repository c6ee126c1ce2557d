"""Files of one JSON object a line that survive a kill between any two lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.files import write_durable


def number(value: float) -> float | str:
    """`value` as JSON can hold it: what is not finite as "NaN", "Infinity", "-Infinity", which float() reads."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class LineWriter:
    """Appends lines to `path`, each with one system call: a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: int | None = None
        self.torn = False

    def write(self, row: dict[str, Any]) -> None:
        """Appends `row`. After a failed write (a full disk) the next one starts on a new line."""
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if self.torn:
            line = b"\n" + line
        self.torn = True
        if os.write(self.file, line) < len(line):
            raise OSError(f"{self.path} could not be written whole; is the disk full?")
        self.torn = False

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drops the rows of later steps, durably, and returns them."""
        self.close()
        rows = list(read(self.path))
        late = [row for row in rows if row["step"] > step]
        if rows and (late or not self.path.read_bytes().endswith(b"\n")):
            kept = [row for row in rows if row["step"] <= step]
            write_durable(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode())
        return late

    def close(self) -> None:
        """Closes the file; the next write opens it again."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `path`, none if there is no such file; a torn line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row


def scalars(path: Path, until: int) -> Iterator[tuple[dict[str, float], int, int]]:
    """The (values, step, epoch) of the rows of `scalars.jsonl` up to step `until`."""
    for row in read(path):
        if row["step"] <= until:
            yield {name: float(value) for name, value in row.items() if "/" in name}, row["step"], row["epoch"]
