"""The backend that needs nothing but a folder.

    vis_data/
      scalars.jsonl      {"step": 20, "epoch": 1, "time": 1767225600.0, "seconds": 3.1, "train/loss": 0.41, …}
      images.jsonl       {"step": 20, "name": "val/predictions", "files": ["images/val/…png"], "captions": […]}
      tables.jsonl       {"step": 20, "name": "val/per_class", "columns": […], "rows": […]}: the history of small tables
      tables/val/per_class.csv      the newest of each table
      images/val/predictions/step_20_0.png
      config.yaml
      report.html        all of it on one page that opens without a network

`time` is in seconds since 1970, `seconds` since the launch. A value that is not finite is one of the strings "NaN",
"Infinity", "-Infinity": valid JSON, and what `float()` reads.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from app.files import write_text
from app.visualizer.csv_text import csv_text
from app.visualizer.jsonl import TABLE, LineWriter, number, picture_files, read

PAGE_SECONDS = 30.0
"""The page is written anew at most this often, and less often where that would cost more than 0.5 % of the time."""
HISTORY_CELLS = 20_000
"""Greater tables (a confusion matrix of many classes) are kept in their newest state only."""


class Local:
    """See the module; written in the training thread, one system call a row."""

    synchronous = True

    def __init__(
        self, folder: Path, run_name: str, experiment: str, group: str | None = None, page: bool = True
    ) -> None:
        self.folder, self.page = Path(folder), page
        self.run_name, self.experiment, self.group = run_name, experiment, group
        self.scalar_rows = LineWriter(self.folder / "scalars.jsonl")
        self.image_rows = LineWriter(self.folder / "images.jsonl")
        self.table_rows = LineWriter(self.folder / "tables.jsonl")
        self.started = time.monotonic()
        self.page_due = self.started + PAGE_SECONDS

    def config(self, config: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        now = time.monotonic()
        row: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "time": round(time.time(), 3),
            "seconds": round(now - self.started, 3),
        }
        row.update((name, number(value)) for name, value in values.items())
        self.scalar_rows.write(row)
        if self.page and now >= self.page_due:
            self.write_page(running=True)

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        from PIL import Image

        folder = "images" / safe_path(name)
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        files = [str(folder / f"step_{step}_{index}.png") for index in range(len(images))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(self.folder / file, compress_level=3)
        self.image_rows.write({"step": step, "name": name, "files": files, "captions": list(captions)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self._write_csv(name, columns, rows)
        if len(columns) * len(rows) <= HISTORY_CELLS:
            cells = [[number(cell) if isinstance(cell, float) else cell for cell in row] for row in rows]
            self.table_rows.write({"step": step, "name": name, "columns": list(columns), "rows": cells})

    def rewind(self, step: int) -> None:
        self.scalar_rows.rewind(step)
        for row in self.image_rows.rewind(step):
            for file in picture_files(self.folder, row):
                file.unlink(missing_ok=True)
        late = {str(row.get("name")) for row in self.table_rows.rewind(step)}
        newest = {row["name"]: row for row in read(self.table_rows.path, TABLE)}
        for name in late:
            if name in newest:
                self._write_csv(name, newest[name]["columns"], newest[name]["rows"])
            else:
                self._csv_path(name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Nothing to do: every row went to the operating system at once."""

    def sync(self) -> None:
        for rows in (self.scalar_rows, self.image_rows, self.table_rows):
            rows.sync()

    def close(self, summary: Mapping[str, float]) -> None:
        if self.page and self.folder.exists():
            self.write_page(running=False, summary=summary)
        for rows in (self.scalar_rows, self.image_rows, self.table_rows):
            rows.close()

    def write_page(self, running: bool, summary: Mapping[str, float] | None = None) -> None:
        """Write report.html and set when the next one is due."""
        from app.visualizer.run_page import page

        before = time.monotonic()
        titles = {"run": self.run_name, "experiment": self.experiment, "group": self.group}
        write_text(self.folder / "report.html", page(self.folder, titles, running, summary or {}))
        now = time.monotonic()
        self.page_due = now + max(PAGE_SECONDS, 200 * (now - before))

    def _csv_path(self, name: str) -> Path:
        return self.folder / "tables" / f"{safe_path(name)}.csv"

    def _write_csv(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        write_text(self._csv_path(name), csv_text(columns, rows))


def safe_path(name: str) -> PurePosixPath:
    """`name` as a relative path: a part with characters unfit for a file name gets a hash, so names stay distinct."""
    return PurePosixPath(*(_safe_part(part) for part in name.split("/") if part))


def _safe_part(part: str) -> str:
    safe = re.sub(r"[^\w.+=-]", "_", part, flags=re.ASCII).lstrip(".")[:100]
    return safe if safe == part else f"{safe}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"
