"""The page of a sweep: ranking, mean and spread over seeds, effect of each parameter, curves, failures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from app.launch.job import DONE_STATE
from app.launch.point import is_seed
from app.launch.results import Point, Sweep, is_number
from app.visualizer.page import Block, render, rounded, table, tile

SHOWN_METRICS = 2
"""Columns of the ranking beside the monitored metric; results.csv has all."""
CURVE_POINTS, ALL_CURVE_POINTS = 400, 40_000
"""Points of a curve, and of all curves of one metric together; longer ones are thinned out."""
TEXT_LENGTH = 48
"""Characters of a setting's value."""


def page(sweep: Sweep) -> str:
    """Render the whole page."""
    folder = sweep.folder.resolve()
    states = [point.state for point in sweep.points]
    ordered_states = sorted(set(states), key=lambda state: (state != DONE_STATE, state))
    counts = [f"{states.count(state)} {state}" for state in ordered_states]
    blocks: list[Block] = [{"kind": "tiles", "items": tiles(sweep)}]
    if sweep.command:
        blocks.append({"kind": "code", "text": shlex.join(sweep.command)})
    blocks += [{"kind": "heading", "text": "Ranking"}, ranking(sweep)]
    blocks += [{"kind": "heading", "text": "Mean and spread over seeds"}, groups(sweep)]
    blocks += [{"kind": "heading", "text": "Effect of each parameter"}, *effects(sweep)]
    blocks += [{"kind": "heading", "text": "Curves"}, curves(sweep)]
    blocks += [{"kind": "heading", "text": "Failures"}, *failures(sweep)]
    number = len(sweep.points)
    words = [f"{number} point{'' if number == 1 else 's'}", *counts]
    return render(f"{folder.parent.name} / {folder.name}", words, blocks)


def note(text: str) -> Block:
    return {"kind": "note", "text": text}


def tiles(sweep: Sweep) -> list[dict[str, str]]:
    """What is best."""
    best = next((point for point in sweep.points if point.value is not None), None)
    if best is None or best.value is None:
        return [tile(f"best {sweep.metric}", "–", "no result yet")]
    found = [tile(f"best {sweep.metric}", f"{best.value:.6g}", best.name)]
    repeated = next((group for group in sweep.groups() if len(group.values) > 1), None)
    if repeated:
        settings = " ".join(f"{axis}={text_of(value)}" for axis, value in repeated.axes.items())
        value = f"{repeated.mean:.6g} ± {repeated.spread:.2g}"
        found.append(tile("best mean over seeds", value, f"{settings} ({len(repeated.values)} seeds)"))
    return found


def ranking(sweep: Sweep) -> Block:
    """Every point, the best first."""
    others = sorted({key for point in sweep.points for key in point.metrics if key != sweep.metric})
    shown = sorted(others, key=lambda key: ("loss" not in key, key))[:SHOWN_METRICS]
    columns = ["#", *sweep.axes, sweep.metric, "state", *(f"last {key}" for key in shown), "step", "point"]
    rows = []
    for rank, point in enumerate(sweep.points, 1):
        settings = [cell(point.axes.get(axis)) for axis in sweep.axes]
        values = [rounded(point.metrics.get(key)) for key in shown]
        state = {"text": point.state, "chip": point.state}
        link = {"text": point.name, "href": f"{point.name}/"}
        place = rank if point.value is not None else None
        rows.append([place, *settings, rounded(point.value), state, *values, point.step, link])
    return table(columns, rows, words=True)


def groups(sweep: Sweep) -> Block:
    """Mean and spread over seeds; a sentence where no two points differ in their seed only."""
    found = sweep.groups()
    if not any(len(group.values) > 1 for group in found):
        return note("No two finished points differ in their seed only.")
    axes = [axis for axis in sweep.axes if any(axis in group.axes for group in found)]
    columns = [*axes, "seeds", f"mean {sweep.metric}", "standard deviation", "min", "max"]
    rows = []
    for group in found:
        settings = [cell(group.axes.get(axis)) for axis in axes]
        numbers = (group.mean, group.spread, min(group.values), max(group.values))
        rows.append([*settings, len(group.values), *map(rounded, numbers)])
    return table(columns, rows, words=True)


def failures(sweep: Sweep) -> list[Block]:
    """How each failed point ended, and how to try it again."""
    if not sweep.failures:
        return [note("None.")]
    blocks: list[Block] = []
    if sweep.command:
        again = shlex.join([*without_resume(sweep.command), "resume=true"])
        blocks += [note("All that is missing, again:"), {"kind": "code", "text": again}]
    return [*blocks, {"kind": "failures", "items": [failure(sweep, point) for point in sweep.failures]}]


def failure(sweep: Sweep, point: Point) -> dict[str, str]:
    """One failed point."""
    overrides = [*without_resume(point.overrides), f"hydra.run.dir={sweep.folder / point.name}", "resume=auto"]
    retry = shlex.join(["python", "-m", "app", *overrides])
    return {
        "name": point.name,
        "reason": point.reason or "",
        "error": point.error or "no output",
        "command": retry,
    }


def without_resume(words: Iterable[str]) -> list[str]:
    """A command line without its `resume=`."""
    return [word for word in words if not word.startswith("resume=")]


def effects(sweep: Sweep) -> list[Block]:
    """For each axis but the seed: its values, in order, with the results of the points that have them."""
    found = []
    for axis in sweep.axes:
        scored = [point for point in sweep.points if point.value is not None and axis in point.axes]
        values = ordered({key_of(point, axis): point.axes[axis] for point in scored}.values())
        if is_seed(axis) or len(values) < 2:
            continue
        having = [[point for point in scored if point.axes[axis] == value] for value in values]
        found.append(
            {
                "axis": axis,
                "words": [text_of(value) for value in values],
                "numbers": values if all(map(is_number, values)) else None,
                "results": [[rounded(point.value) for point in points] for points in having],
                "names": [[point.name for point in points] for points in having],
            }
        )
    if not found:
        return [note("No parameter has two values with results yet.")]
    hint = "A dot is a point of the sweep; the line, or the larger dot, is the mean of those with that value."
    return [note(hint), {"kind": "effects", "metric": sweep.metric, "effects": found}]


def key_of(point: Point, axis: str) -> str:
    return json.dumps(point.axes.get(axis), default=str)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Numbers by size, anything else as text."""
    return sorted(values, key=lambda value: (0, value, "") if is_number(value) else (1, 0, text_of(value)))


def curves(sweep: Sweep) -> Block:
    """The validation curves of every point, thinned out; points with the same steps share them."""
    grids: dict[str, int] = {}
    shared: list[dict[str, list[Any]]] = []
    most = max(20, min(CURVE_POINTS, ALL_CURVE_POINTS // max(1, len(sweep.points))))
    found = []
    for point in sweep.points:
        series = {}
        for metric in sorted({key for row in point.rows for key in row if key.startswith("val/")}):
            rows = thin([row for row in point.rows if metric in row], most)
            grid = {"step": [row["step"] for row in rows], "epoch": [row.get("epoch") for row in rows]}
            index = grids.setdefault(json.dumps(grid), len(grids))
            if index == len(shared):
                shared.append(grid)
            series[metric] = (index, [rounded(row[metric], 5) for row in rows])
        found.append({"name": point.name, "axes": {a: text_of(v) for a, v in point.axes.items()}, "series": series})
    metrics = sorted({metric for point in found for metric in point["series"]}, key=lambda name: name != sweep.metric)
    if not metrics:
        return note("No validation has been written yet.")
    axes = [axis for axis in sweep.axes if len({key_of(point, axis) for point in sweep.points}) > 1]
    return {
        "kind": "curves",
        "metric": metrics[0],
        "metrics": metrics,
        "axes": axes,
        "points": found,
        "grids": shared,
    }


def thin(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most about `most` rows, the last among them."""
    stride = -(-len(rows) // most) or 1
    return [*rows[: len(rows) - 1 : stride], *rows[-1:]]


def text_of(value: Any) -> str:
    """A value for people; of a long one its beginning and its end, where paths differ."""
    words = value if isinstance(value, str) else json.dumps(value, default=str)
    return words if len(words) <= TEXT_LENGTH else f"{words[: TEXT_LENGTH // 3]}…{words[-TEXT_LENGTH // 2 :]}"


def cell(value: Any) -> Any:
    """A setting in a table: a number as it is, so that it sorts as one."""
    return value if value is None or is_number(value) else text_of(value)
