"""The report of a sweep: `python -m app.report FOLDER` writes results.csv and report.html there, finished or not.

Reads job.json, DONE.json and vis_data/scalars.jsonl of each point's folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.files import read_json, write_text
from app.launch.job import DONE_STATE, FAILED, RESULT, finished, read_records
from app.launch.point import is_seed

SCALARS = Path("vis_data", "scalars.jsonl")
CSV = "results.csv"
PAGE = "report.html"


@dataclass
class Point:
    """What is known of one point of a sweep."""

    name: str
    axes: dict[str, Any]
    overrides: list[str]
    state: str
    metric: str | None = None
    """Name of the monitored metric."""
    rule: str | None = None
    """`greater` or `less`: which of its values is better."""
    value: float | None = None
    """Its best value so far."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Last value of everything that was validated or tested."""
    step: int = 0
    reason: str | None = None
    error: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of scalars.jsonl that hold validation or test values."""


@dataclass
class Group:
    """Points that differ in their seed only."""

    axes: dict[str, Any]
    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation; None for a single point."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class Sweep:
    """All points of a folder, the best first."""

    folder: Path
    points: list[Point]
    metric: str
    greater: bool
    """Greater values are better."""
    command: list[str]

    @property
    def axes(self) -> list[str]:
        return sorted({key for point in self.points for key in point.axes})

    @property
    def failures(self) -> list[Point]:
        return [point for point in self.points if point.state == FAILED]

    def groups(self) -> list[Group]:
        """Points without their seed, best mean first."""
        found: dict[str, Group] = {}
        for point in self.points:
            if point.value is not None:
                axes = {key: value for key, value in point.axes.items() if not is_seed(key)}
                found.setdefault(json.dumps(axes, sort_keys=True), Group(axes, [])).values.append(point.value)
        return sorted(found.values(), key=lambda group: -group.mean if self.greater else group.mean)


def read_sweep(folder: Path) -> Sweep:
    """Reads a sweep's folder, whatever has happened to it so far."""
    about = read_json(folder / "sweep.json") or {}
    points = [read_point(folder / name, record) for name, record in read_records(folder).items()]
    named = [point.metric for point in points if point.metric]
    tested = any("test/top1" in point.metrics for point in points)
    metric = max(named, key=named.count) if named else "test/top1" if tested else "val/top1"
    rules = [point.rule for point in points if point.metric == metric and point.rule]
    greater = rules[0] == "greater" if rules else is_greater(metric)
    for point in points:
        point.value = point.value if point.metric == metric else best_of(point.rows, metric, greater)
    points.sort(key=lambda point: (rank_key(point.value, greater), point.name))
    return Sweep(folder, points, metric, greater, about.get("command", []))


def read_point(folder: Path, record: dict[str, Any]) -> Point:
    """One point's folder; half-written files count as far as they go."""
    done = finished(folder, record.get("length")) or {}
    point = Point(folder.name, record["axes"], record["overrides"], DONE_STATE if done else record["state"])
    point.rows = list(read_rows(folder / SCALARS))
    for row in point.rows:
        point.metrics |= evaluated(row)
        point.step = row.get("step", point.step)
    left = read_json(folder / RESULT) or {}
    if "error" in left and not done:  # a SLURM job that ended after its launcher; nobody has collected it yet
        point.state, record = FAILED, {"reason": f"exit code {left.get('exit_code')}", "error": left["error"]}
    if point.state == FAILED:
        point.reason, point.error = record.get("reason"), record.get("error")
    point.metric, point.rule, point.value = done.get("metric"), done.get("rule"), as_number(done.get("best"))
    point.metrics |= evaluated(done.get("metrics") or {})
    point.step = done.get("step", point.step)
    return point


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a scalars.jsonl that hold validation or test values, numbers only."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        if '"val/' in line or '"test/' in line:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            yield {key: row[key] for key in ("step", "epoch") if key in row} | evaluated(row)


def evaluated(values: Mapping[str, Any]) -> dict[str, float]:
    """The validation and test values among `values`; finite numbers only."""
    return {
        key: value
        for key, value in values.items()
        if key.startswith(("val/", "test/")) and as_number(value) is not None
    }


def last_scalars(folder: Path, tail_bytes: int = 8192) -> dict[str, Any]:
    """The newest values in a run's scalars.jsonl, each from the last row that has it."""
    try:
        with (folder / SCALARS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
            lines = file.read().splitlines()
    except OSError:
        return {}
    values: dict[str, Any] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        values |= row if isinstance(row, dict) else {}
    return values


def best_of(rows: Sequence[dict[str, Any]], metric: str, greater: bool) -> float | None:
    """The best value of `metric` in `rows`."""
    values = [row[metric] for row in rows if metric in row]
    return (max if greater else min)(values, default=None)


def as_number(value: Any) -> float | None:
    """`value` if it is a finite number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def is_greater(metric: str) -> bool:
    """Whether greater is better, by the metric's name: while no point has finished and said so."""
    return not any(word in metric for word in ("loss", "error", "nll", "ece"))


def rank_key(value: float | None, greater: bool) -> float:
    """Sorts the best first and what has no value last."""
    return math.inf if value is None else -value if greater else value


def as_csv(sweep: Sweep) -> str:
    """One row per point, ranked; it holds no times, so the same sweep gives the same table."""
    metrics = sorted({key for point in sweep.points for key in point.metrics if key != sweep.metric})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    head = ["rank", "point", "state", *sweep.axes, sweep.metric]
    writer.writerow([*head, *(f"last {key}" for key in metrics), "step", "reason", "error"])
    for rank, point in enumerate(sweep.points, 1):
        settings = [as_cell(point.axes.get(key, "")) for key in sweep.axes]
        values = [as_cell(point.metrics.get(key)) for key in metrics]
        row = [rank if point.value is not None else "", point.name, point.state, *settings, as_cell(point.value)]
        writer.writerow([*row, *values, point.step, point.reason or "", point.error or ""])
    return table.getvalue()


def as_cell(value: Any) -> str:
    """A value in a table: text as it is, anything else as JSON, nothing for None."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def write_report(folder: Path) -> Sweep:
    """Writes results.csv and report.html into a sweep's folder, whole or not at all."""
    from app.launch.page import render

    sweep = read_sweep(folder)
    for name, text in ((CSV, as_csv(sweep)), (PAGE, render(sweep))):
        write_text(folder / name, text)
    return sweep


class Reporter:
    """Keeps the report of a running sweep up to date, at no more than a twentieth of the launcher's time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next_time = 0.0
        self.due = False

    def refresh(self, force: bool = False) -> None:
        """Something has changed."""
        self.due = True
        self.refresh_if_due(force)

    def refresh_if_due(self, force: bool = False) -> None:
        """Writes the report if something has changed and the last one is long enough ago."""
        if not self.due or (time.monotonic() < self.next_time and not force):
            return
        started = time.monotonic()
        try:
            write_report(self.folder)
        except OSError as error:
            print(f"warning: the report in {self.folder} cannot be written: {error}", file=sys.stderr)
        self.next_time = time.monotonic() + 20 * (time.monotonic() - started)
        self.due = False


def main(arguments: Sequence[str]) -> int:
    """Writes the report of each folder; returns the exit code."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m app.report FOLDER…   writes results.csv and report.html into a sweep's folder")
        return 0 if {"-h", "--help"} & set(arguments) else 64
    for argument in arguments:
        folder = Path(argument)
        if not read_records(folder):
            print(f"error: {folder} holds no sweep: there is no */job.json in it", file=sys.stderr)
            return 64
        sweep = write_report(folder)
        done = sum(point.state == DONE_STATE for point in sweep.points)
        print(f"{done} of {len(sweep.points)} points done, {len(sweep.failures)} failed: {folder / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
