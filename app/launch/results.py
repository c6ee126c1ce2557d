"""What the points of a sweep have reached: job.json, DONE.json and vis_data/scalars.jsonl of each folder, ranked."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.files import read_json
from app.launch.job import DONE_STATE, FAILED, RECORD, RESULT
from app.launch.point import is_seed
from app.runs.folder import DONE
from app.visualizer import jsonl

SCALARS = Path("vis_data", "scalars.jsonl")
UNKNOWN = "unknown"
"""State of a point whose record is lost."""


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
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Last value of everything that was validated or tested; None where it is not finite."""
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
    """Read a sweep's folder, whatever has happened to it so far."""
    about = read_json(folder / "sweep.json") or {}
    points = [read_point(place) for place in point_folders(folder)]
    named = [point.metric for point in points if point.metric]
    tested = any("test/top1" in point.metrics for point in points)
    metric = max(named, key=named.count) if named else "test/top1" if tested else "val/top1"
    rules = [point.rule for point in points if point.metric == metric and point.rule]
    greater = rules[0] == "greater" if rules else is_greater(metric)
    for point in points:
        point.value = point.value if point.metric == metric else best_of(point.rows, metric, greater)
    points.sort(key=lambda point: (rank_key(point.value, greater), point.name))
    return Sweep(folder, points, metric, greater, words(about.get("command")))


def point_folders(folder: Path) -> list[Path]:
    """The folders of a sweep's points, by name: those with a job.json, or with what a job leaves where that is lost."""
    parts = (RECORD, DONE, SCALARS)
    places = (path for path in folder.glob("[!.]*") if path.is_dir() and not path.is_symlink())
    return sorted(path for path in places if any((path / part).exists() for part in parts))


def words(value: Any) -> list[str]:
    """A list of strings; empty where it is none."""
    return [str(word) for word in value] if isinstance(value, list) else []


def read_point(folder: Path) -> Point:
    """Read one point's folder; what is missing or damaged is absent, the rest counts."""
    job = read_json(folder / RECORD) or {}
    length = as_number(job.get("length"))
    done = read_json(folder / DONE) or {}
    if length is not None and (as_number(done.get("length")) or length) < length:
        done = {}  # it is to train longer now
    axes = job.get("axes")
    state = DONE_STATE if done else str(job.get("state", UNKNOWN))
    point = Point(folder.name, axes if isinstance(axes, dict) else {}, words(job.get("overrides")), state)
    for row in jsonl.read(folder / SCALARS, having=(b'"val/', b'"test/')):
        point.metrics |= evaluated(row)
        point.step = row["step"]
        point.rows.append({"step": row["step"], "epoch": row.get("epoch"), **evaluated(row)})
    left = read_json(folder / RESULT) or {}
    if "error" in left and not done:  # a SLURM job that ended after its launcher; nobody has collected it yet
        point.state, job = FAILED, {"reason": f"exit code {left.get('exit_code')}", "error": left["error"]}
    if point.state == FAILED:
        point.reason, point.error = (str(job[key]) if job.get(key) else None for key in ("reason", "error"))
    if isinstance(done.get("metric"), str):
        point.metric, point.value = done["metric"], as_number(done.get("best"))
        point.rule = done["rule"] if done.get("rule") in ("greater", "less") else None
    metrics = done.get("metrics")
    point.metrics |= evaluated(metrics if isinstance(metrics, dict) else {})
    point.step = done["step"] if isinstance(done.get("step"), int) else point.step
    return point


def evaluated(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The validation and test values among `values`; None for what is not finite."""
    return {key: as_number(value) for key, value in values.items() if key.startswith(("val/", "test/"))}


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
        except (ValueError, RecursionError):
            continue
        values |= row if isinstance(row, dict) else {}
    return values


def best_of(rows: Sequence[dict[str, Any]], metric: str, greater: bool) -> float | None:
    """The best value of `metric` in `rows`."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return (max if greater else min)(values, default=None)


def as_number(value: Any) -> float | None:
    """`value` if it is a finite number."""
    return value if is_number(value) and math.isfinite(value) else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_greater(metric: str) -> bool:
    """Whether greater is better, by the metric's name: while no point has finished and said so."""
    return not any(word in metric for word in ("loss", "error", "nll", "ece"))


def rank_key(value: float | None, greater: bool) -> float:
    """Sorts the best first and what has no value last."""
    return math.inf if value is None else -value if greater else value
