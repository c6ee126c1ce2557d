"""The curves of a run, from the rows of scalars.jsonl: one chart a quantity, marked where the run was resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from app.visualizer.jsonl import values
from app.visualizer.page import rounded

CURVE_POINTS = 2000
"""A longer curve is thinned to the least and the greatest value of each stretch, so that no spike is lost."""
FIRST = ("loss", "top1", "top5", "precision", "recall", "f1", "lr")
"""The order of the charts; other quantities follow by name, the machine's last."""
MACHINE = ("grad_norm", "time", "data_time", "images_per_second", "memory_mib")

TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "time": "seconds per iteration",
    "data_time": "seconds waiting for data",
    "images_per_second": "images per second",
    "memory_mib": "memory in MiB",
}
Point = tuple[int, float, float]
"""Step, epoch, value."""


def launches(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows that were kept of each launch; a row says when it was written, and how long after its launch."""
    found: list[list[Mapping[str, Any]]] = []
    started = -math.inf
    for row in rows:
        if row["time"] - row["seconds"] > started + 1:
            started = row["time"] - row["seconds"]
            found.append([])
        found[-1].append(row)
    return found


def launch_seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """For each launch, the time up to the last row that was kept of it."""
    return [max(row["seconds"] for row in launch) for launch in launches(rows)]


def resume_marks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where each launch but the first took over: after the last row that it kept."""
    places = {id(row): epoch for row, epoch in zip(rows, exact_epochs(rows), strict=True)}
    found = []
    for before, after in pairwise(launches(rows)):
        when = datetime.fromtimestamp(after[0]["time"] - after[0]["seconds"]).isoformat(sep=" ", timespec="minutes")
        last = before[-1]
        text = f"resumed at step {last['step']}, {when}"
        found.append({"step": last["step"], "epoch": places[id(last)], "text": text})
    return found


def charts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One chart a quantity, of learning and of the machine; phases (train, val) and raw weights (`_origin`) are curves.

    None for a test: one evaluation is no curve.
    """
    curves: dict[str, list[Point]] = {}
    for row, epoch in zip(rows, exact_epochs(rows), strict=True):
        for name, value in values(row).items():
            if not name.startswith("test/"):
                curves.setdefault(name, []).append((row["step"], epoch, value))
    quantities: dict[str, list[str]] = {}
    for name in curves:
        quantities.setdefault(name.split("/", 1)[1].removesuffix("_origin"), []).append(name)

    def chart(quantity: str) -> dict[str, Any]:
        names = sorted(quantities[quantity])
        lines = [{"name": name, **_columns(thin(curves[name], CURVE_POINTS))} for name in names]
        return {"title": TITLES.get(quantity, quantity), "curves": lines}

    known = [name for name in FIRST if name in quantities]
    others = sorted(name for name in quantities if name not in (*FIRST, *MACHINE))
    return [chart(name) for name in (*known, *others)], [chart(name) for name in MACHINE if name in quantities]


def exact_epochs(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where each row lies in its epoch, on straight lines between the first steps with one more finished epoch."""
    if not rows:
        return []
    begins = {0: 0}
    for row in rows:
        begins.setdefault(row["epoch"], row["step"])
    epochs, steps = list(begins), list(begins.values())
    if len(begins) > 1 and steps[-1] > steps[-2]:
        last = max(row["step"] for row in rows)
        rate = (epochs[-1] - epochs[-2]) / (steps[-1] - steps[-2])
        epochs.append(epochs[-1] + rate * (last - steps[-1]))
        steps.append(last)
    return [round(float(epoch), 4) for epoch in np.interp([row["step"] for row in rows], steps, epochs)]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of (step, epoch, value): first, last, and the extremes of each stretch between."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: set[int] = {0, len(points) - 1}
    for begin in range(0, len(points), size):
        stretch = range(begin, min(begin + size, len(points)))
        kept.add(min(stretch, key=lambda index: points[index][2]))
        kept.add(max(stretch, key=lambda index: points[index][2]))
    return [points[index] for index in sorted(kept)]


def _columns(points: Sequence[Point]) -> dict[str, list[Any]]:
    return {
        "step": [point[0] for point in points],
        "epoch": [point[1] for point in points],
        "value": [rounded(point[2]) if math.isfinite(point[2]) else None for point in points],
    }
