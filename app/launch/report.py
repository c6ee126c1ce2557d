"""The report of a sweep: `python -m app.report FOLDER` writes results.csv and report.html there, finished or not."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import CANNOT_WRITE
from app.files import write_text
from app.launch.job import DONE_STATE
from app.launch.page import page
from app.launch.results import Sweep, point_folders, read_sweep
from app.visualizer.csv_text import csv_text

logger = logging.getLogger(__name__)

CSV = "results.csv"
PAGE = "report.html"


def as_csv(sweep: Sweep) -> str:
    """One row per point, ranked; it holds no times, so the same sweep gives the same table."""
    metrics = sorted({key for point in sweep.points for key in point.metrics if key != sweep.metric})
    head = ["rank", "point", "state", *sweep.axes, sweep.metric]
    rows = []
    for rank, point in enumerate(sweep.points, 1):
        settings = [as_cell(point.axes.get(key, "")) for key in sweep.axes]
        values = [point.metrics.get(key) for key in metrics]
        row = [rank if point.value is not None else "", point.name, point.state, *settings, point.value]
        rows.append([*row, *values, point.step, point.reason or "", point.error or ""])
    return csv_text([*head, *(f"last {key}" for key in metrics), "step", "reason", "error"], rows)


def as_cell(value: Any) -> Any:
    """A setting in a table: words and numbers as they are, anything else as JSON, nothing for None."""
    return (
        value
        if value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))
        else json.dumps(value)
    )


def write_report(folder: Path) -> Sweep:
    """Write results.csv and report.html into a sweep's folder, whole or not at all."""
    sweep = read_sweep(folder)
    for name, text in ((CSV, as_csv(sweep)), (PAGE, page(sweep))):
        write_text(folder / name, text)
    return sweep


class Reporter:
    """Keep the report of a running sweep up to date, at no more than a twentieth of the launcher's time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next_time = 0.0
        self.due = False
        self.problem = ""

    def refresh(self, force: bool = False) -> None:
        """Note that something has changed."""
        self.due = True
        self.refresh_if_due(force)

    def refresh_if_due(self, force: bool = False) -> None:
        """Write the report if something has changed and the last one is long enough ago."""
        if not self.due or (time.monotonic() < self.next_time and not force):
            return
        started = time.monotonic()
        try:
            write_report(self.folder)
        except Exception as error:  # whatever it is: jobs are running, and a report can be written again
            problem = f"the report in {self.folder} cannot be written: {type(error).__name__}: {error}"
            if problem != self.problem:
                logger.warning("%s", problem)
            self.problem = problem
        self.next_time = time.monotonic() + 20 * (time.monotonic() - started)
        self.due = False


def main(arguments: Sequence[str]) -> int:
    """Write the report of each folder; return the exit code."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m app.report FOLDER…   writes results.csv and report.html into a sweep's folder")
        return 0 if {"-h", "--help"} & set(arguments) else 64
    for argument in arguments:
        folder = Path(argument)
        if not point_folders(folder):
            print(f"error: {folder} holds no sweep: there is no */job.json in it", file=sys.stderr)
            return 64
        try:
            sweep = write_report(folder)
        except OSError as error:
            print(f"error: cannot write the report in {folder}: {error.strerror or error}", file=sys.stderr)
            return CANNOT_WRITE
        done = sum(point.state == DONE_STATE for point in sweep.points)
        print(f"{done} of {len(sweep.points)} points done, {len(sweep.failures)} failed: {folder / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
