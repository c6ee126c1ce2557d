"""The page of a sweep's report: one file that needs no network, with plotly's script inside."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.launch.job import DONE_STATE, FAILED
from app.launch.point import is_seed
from app.launch.report import is_number

if TYPE_CHECKING:
    from app.launch.report import Point, Sweep

COLOURS = ("#2f6fed", "#e4572e", "#2a9d62", "#9b5de5", "#e0a100", "#00a5b5", "#d6336c", "#6c757d", "#8a5a2b", "#5c7cfa")
MOST_METRICS = 2
"""Columns of the ranking beside the monitored metric; results.csv has all."""
LONGEST_CURVE = 400
"""Points of a curve; longer ones are thinned out."""
LONGEST_TEXT = 48
"""Characters of a setting's value."""
RESOURCES = Path(__file__).parent


def render(sweep: Sweep) -> str:
    """The whole page."""
    data = {
        "metric": sweep.metric,
        "axes": [axis for axis in sweep.axes if varies(sweep, axis)],
        "effects": effects(sweep),
        "curves": curves(sweep),
        "colours": COLOURS,
    }
    title = f"{sweep.folder.resolve().parent.name} / {sweep.folder.resolve().name}"
    parts = {
        "title": escape(title),
        "style": (RESOURCES / "page.css").read_text(),
        "header": header(sweep, title),
        "ranking": ranking(sweep),
        "groups": groups(sweep),
        "failures": failures(sweep),
        "plotly": plotly_script(),
        "data": as_script(data),
        "code": (RESOURCES / "page.js").read_text(),
    }
    page = (RESOURCES / "page.html").read_text()
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


@cache
def plotly_script() -> str:
    """plotly's own JavaScript, some 5 MB."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text()


def as_script(value: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def header(sweep: Sweep, title: str) -> str:
    """What it is, how far it is, what is best."""
    states = [point.state for point in sweep.points]
    counts = "".join(
        f'<span class="chip {escape(state)}">{states.count(state)} {escape(state)}</span>'
        for state in sorted(set(states), key=lambda state: (state != DONE_STATE, state))
    )
    best = next((point for point in sweep.points if point.value is not None), None)
    told = f"<p>Best {code(sweep.metric)}: <b>{best.value:.6g}</b> by {code(best.name)}</p>" if best else ""
    repeated = next((group for group in sweep.groups() if len(group.values) > 1), None)
    if repeated:
        settings = code(" ".join(f"{axis}={text_of(value)}" for axis, value in repeated.axes.items()))
        mean = f"<b>{repeated.mean:.6g}</b> ± {repeated.spread:.2g}"
        told += f"<p>Best mean over seeds: {mean} by {settings} ({len(repeated.values)} seeds)</p>"
    command = f"<pre>{escape(shlex.join(sweep.command))}</pre>" if sweep.command else ""
    told = told or "<p>No result yet.</p>"
    return f"<h1>{escape(title)}</h1><p>{len(sweep.points)} points {counts}</p>{told}{command}"


def ranking(sweep: Sweep) -> str:
    """Every point, the best first."""
    others = sorted({key for point in sweep.points for key in point.metrics if key != sweep.metric})
    shown = sorted(others, key=lambda key: ("loss" not in key, key))[:MOST_METRICS]
    head = ["#", *sweep.axes, sweep.metric, "state", *(f"last {key}" for key in shown), "step", "folder"]
    rows = []
    for rank, point in enumerate(sweep.points, 1):
        settings = [text(point.axes.get(axis)) for axis in sweep.axes]
        values = [number(point.metrics.get(key)) for key in shown]
        state = f'<span class="chip {escape(point.state)}">{escape(point.state)}</span>'
        link = f'<a href="{escape(point.name)}/">{escape(point.name)}</a>'
        first = str(rank) if point.value is not None else ""
        rows.append([first, *settings, number(point.value, strong=True), state, *values, str(point.step), link])
    return table(head, rows)


def groups(sweep: Sweep) -> str:
    """Mean and spread over seeds; nothing where no two points differ in their seed only."""
    found = sweep.groups()
    if not any(len(group.values) > 1 for group in found):
        return "<p>No two finished points differ in their seed only.</p>"
    axes = [axis for axis in sweep.axes if any(axis in group.axes for group in found)]
    head = [*axes, "seeds", f"mean {sweep.metric}", "standard deviation", "least", "greatest"]
    rows = []
    for group in found:
        settings = [text(group.axes.get(axis)) for axis in axes]
        ends = [number(min(group.values)), number(max(group.values))]
        mean = number(group.mean, strong=True)
        rows.append([*settings, str(len(group.values)), mean, number(group.spread), *ends])
    return table(head, rows)


def failures(sweep: Sweep) -> str:
    """How each failed point ended, and how to try it again."""
    if not sweep.failures:
        return "<p>None.</p>"
    again = shlex.join([*without_resume(sweep.command), "resume=true"]) if sweep.command else ""
    every = f"<p>All that is missing, again: {code(again)}</p>" if again else ""
    return every + "".join(failure(sweep, point) for point in sweep.failures)


def failure(sweep: Sweep, point: Point) -> str:
    """One failed point."""
    overrides = [*without_resume(point.overrides), f"hydra.run.dir={sweep.folder / point.name}", "resume=auto"]
    retry = shlex.join(["python", "-m", "app", *overrides])
    return (
        f'<div class="failure"><h3>{escape(point.name)} <span class="chip {FAILED}">{escape(point.reason or "")}</span>'
        f"</h3><pre>{escape(point.error or 'no output')}</pre><p>Again, by itself: {code(retry)}</p></div>"
    )


def without_resume(words: Iterable[str]) -> list[str]:
    """A command line without its `resume=`."""
    return [word for word in words if not word.startswith("resume=")]


def varies(sweep: Sweep, axis: str) -> bool:
    """Whether the points differ in `axis`."""
    return len({json.dumps(point.axes.get(axis), default=str) for point in sweep.points}) > 1


def effects(sweep: Sweep) -> list[dict[str, Any]]:
    """For each axis but the seed: its values, in order, with the results of the points that have them."""
    found = []
    for axis in sweep.axes:
        scored = [point for point in sweep.points if point.value is not None and axis in point.axes]
        values = ordered({json.dumps(point.axes[axis], default=str): point.axes[axis] for point in scored}.values())
        if is_seed(axis) or len(values) < 2:
            continue
        results = [[point.value for point in scored if point.axes[axis] == value] for value in values]
        names = [[point.name for point in scored if point.axes[axis] == value] for value in values]
        labels = [text_of(value) for value in values]
        ordinal = all(map(is_number, values))
        found.append({"axis": axis, "values": labels, "ordinal": ordinal, "results": results, "names": names})
    return found


def ordered(values: Iterable[Any]) -> list[Any]:
    """Numbers by size, anything else as text."""
    return sorted(values, key=lambda value: (0, value, "") if is_number(value) else (1, 0, text_of(value)))


def curves(sweep: Sweep) -> list[dict[str, Any]]:
    """The validation curves of every point, thinned out."""
    found = []
    for point in sweep.points:
        metrics = sorted({key for row in point.rows for key in row if key.startswith("val/")})
        series = {}
        for metric in metrics:
            rows = thin([row for row in point.rows if metric in row and "step" in row])
            steps, values = [row["step"] for row in rows], [row[metric] for row in rows]
            series[metric] = {"step": steps, "epoch": [row.get("epoch") for row in rows], "y": values}
        axes = {axis: text_of(value) for axis, value in point.axes.items()}
        found.append({"name": point.name, "axes": axes, "series": series})
    return found


def thin(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most about LONGEST_CURVE rows, the last among them."""
    stride = -(-len(rows) // LONGEST_CURVE) or 1
    return [*rows[: len(rows) - 1 : stride], *rows[-1:]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML already; a click on a heading sorts."""
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def code(words: str) -> str:
    return f"<code>{escape(words)}</code>"


def text_of(value: Any) -> str:
    """A value for people; of a long one its beginning and its end, where paths differ."""
    words = value if isinstance(value, str) else json.dumps(value, default=str)
    return words if len(words) <= LONGEST_TEXT else f"{words[: LONGEST_TEXT // 3]}…{words[-LONGEST_TEXT // 2 :]}"


def text(value: Any) -> str:
    return "" if value is None else escape(text_of(value))


def number(value: float | None, strong: bool = False) -> str:
    if value is None:
        return ""
    return f"<b>{value:#.5g}</b>" if strong else f"{value:#.5g}"
