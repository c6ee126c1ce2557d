"""The page of one run: curves, pictures, tables, configuration, environment; one file that opens without a network."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import ConfigError
from app.files import read_json, warn_once
from app.metrics.names import metric_rules
from app.visualizer.jsonl import Kinds, read, values
from app.visualizer.local import IMAGES, TABLE, picture_files

CURVE_POINTS = 2000
"""A longer curve is thinned to the least and the greatest value of each stretch, so that no spike is lost."""
PICTURE_BYTES = 24 * 2**20
"""Pictures of more evaluations than fit in this are left out of the page, evenly; they stay in `images/`."""
FIRST = ("loss", "top1", "top5", "precision", "recall", "f1", "lr")
"""The order of the charts; other quantities follow by name, the machine's last."""
PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"
MACHINE = ("grad_norm", "time", "data_time", "images_per_second", "memory_mib")

SCALARS: Kinds = {"epoch": int, "time": (int, float), "seconds": (int, float)}

Point = tuple[int, float, float]
"""Step, epoch, value."""


def page(folder: Path, titles: Mapping[str, str | None], running: bool, summary: Mapping[str, float]) -> str:
    """The page of what lies in `folder`, a run's vis_data."""
    from plotly.offline import get_plotlyjs

    rows = list(read(folder / "scalars.jsonl", SCALARS))
    config, settings = configuration(folder / "config.yaml")
    epochs = {row["step"]: row["epoch"] for row in rows}
    newest = tables(folder, epochs)
    content = {
        "titles": titles,
        "state": state(rows, settings, running),
        "written": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "tiles": tiles(rows, settings),
        "summary": {name: value for name, value in summary.items() if math.isfinite(value)},
        "charts": charts(rows),
        "pictures": {name: each for name, each in pictures(folder, epochs).items() if name not in newest},
        "tables": newest,
        "config": config,
        "environment": environment(folder.parent / "environment.json"),
    }
    data = json.dumps(content, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    template = files("app.visualizer").joinpath("page.html").read_text(encoding="utf-8")
    title = f"{titles['experiment']} · {titles['run']}".replace("&", "&amp;").replace("<", "&lt;")
    parts = {"TITLE": title, "PLOTLY": get_plotlyjs(), "DATA": data}
    return re.sub(r"\{\{(TITLE|PLOTLY|DATA)\}\}", lambda match: parts[match[1]], template)


def configuration(file: Path) -> tuple[str, dict[str, Any]]:
    """Read config.yaml: its text, and its values; none where it cannot be read."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        warn_once(file, str(error).partition("\n")[0])
        return "", {}
    if not isinstance(settings, dict):
        warn_once(file, "it holds no settings")
        return "", {}
    return text, settings


def state(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], running: bool) -> dict[str, str]:
    """Whether the run goes on, was finished or stopped early, and where it is."""
    if not rows:
        return {"word": "running" if running else "ended", "place": "nothing logged yet"}
    if settings.get("mode") == "test":
        return {"word": "running" if running else "finished", "place": "test"}
    done = {"epoch": max(row["epoch"] for row in rows), "step": max(row["step"] for row in rows)}
    train = settings.get("train") or {}
    unit = "epoch" if train.get("by_epoch", True) else "step"
    length = train.get("max_epochs" if unit == "epoch" else "max_iters")
    place = f"{unit} {done[unit]} of {length}" if length else f"{unit} {done[unit]}"
    word = "running" if running else "finished" if length and done[unit] >= length else "ended"
    return {"word": word, "place": place}


def tiles(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers at the top of the page: the watched metric, the last losses, and how long it took."""
    found = [
        {"label": key, "value": _short(value), "note": ""}
        for key, value in (values(rows[-1]).items() if rows else ())
        if key.startswith("test/")
    ]
    for name, rule in watched(settings):
        points = [(values(row).get(name, math.nan), row) for row in rows if name in row]
        points = [point for point in points if math.isfinite(point[0])]
        if points:
            best, row = (min if rule == "less" else max)(points, key=lambda point: point[0])
            where = f"epoch {row['epoch']}, step {row['step']}"
            found.append({"label": f"best {name}", "value": _short(best), "note": where})
            last, row = points[-1]
            found.append({"label": f"last {name}", "value": _short(last), "note": f"step {row['step']}"})
    for name in ("train/loss", "val/loss"):
        newest = next((row for row in reversed(rows) if name in values(row)), None)
        if newest is not None:
            value = _short(values(newest)[name])
            found.append({"label": f"last {name}", "value": value, "note": f"step {newest['step']}"})
    if rows:
        ends = launch_seconds(rows)
        note = "one launch" if len(ends) == 1 else f"in {len(ends)} launches"
        found.append({"label": "duration", "value": _duration(sum(ends)), "note": note})
    return found


def watched(settings: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """The run's metric and its direction; nothing for a test, or where the settings do not say."""
    try:
        rules = metric_rules(settings) if settings.get("mode") == "train" else {}
    except (ConfigError, LookupError, TypeError, AttributeError):  # a config.yaml that somebody edited
        return []
    return list(rules.items())[:1]


def launch_seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """For each launch, the time up to the last row that was kept of it."""
    ends: list[float] = []
    started = -math.inf
    for row in rows:
        if row["time"] - row["seconds"] > started + 1:
            started = row["time"] - row["seconds"]
            ends.append(0.0)
        ends[-1] = max(ends[-1], row["seconds"])
    return ends


def charts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One chart a quantity; the phases (train, val, …) and raw weights (`_origin`) are its curves.

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

    def place(quantity: str) -> tuple[int, str]:
        if quantity in MACHINE:
            return len(FIRST) + 1 + MACHINE.index(quantity), ""
        return (FIRST.index(quantity) if quantity in FIRST else len(FIRST)), quantity

    return [
        {
            "title": quantity,
            "machine": quantity in MACHINE,
            "curves": [{"name": name, **_columns(thin(curves[name], CURVE_POINTS))} for name in sorted(names)],
        }
        for quantity, names in sorted(quantities.items(), key=lambda item: place(item[0]))
    ]


def exact_epochs(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where each row lies in its epoch, on straight lines between the first steps with one more finished epoch."""
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
        "value": [float(f"{point[2]:.6g}") if math.isfinite(point[2]) else None for point in points],
    }


def pictures(folder: Path, epochs: Mapping[int, int]) -> dict[str, list[dict[str, Any]]]:
    """For each name of pictures, its evaluations: step, epoch, and each picture as a data address with its caption."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read(folder / "images.jsonl", IMAGES):
        if not row["name"].endswith("_grid"):  # the page lays single pictures out itself
            found.setdefault(row["name"], []).append(row)
    files = [file for rows in found.values() for row in rows for file in picture_files(folder, row)]
    size = sum(file.stat().st_size for file in files if file.exists())
    stride = max(1, math.ceil(size * 4 / 3 / PICTURE_BYTES))
    return {
        name: [
            {
                "step": row["step"],
                "epoch": epochs.get(row["step"]),
                "images": [
                    {"source": source, "caption": str(caption)}
                    for file, caption in zip(picture_files(folder, row), row["captions"], strict=False)
                    if (source := _data_address(file)) is not None
                ],
            }
            for row in reversed(rows[::-1][::stride])
        ]
        for name, rows in found.items()
    }


def _data_address(file: Path) -> str | None:
    """The picture as a data address; None where it is not whole."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return warn_once(file, error.strerror or str(error))
    if not (content.startswith(PNG_BEGIN) and content.endswith(PNG_END)):
        return warn_once(file, "it is no whole PNG picture")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def tables(folder: Path, epochs: Mapping[int, int]) -> dict[str, dict[str, Any]]:
    """The newest state of each table."""
    return {
        row["name"]: {
            "columns": row["columns"],
            "rows": row["rows"],
            "step": row["step"],
            "epoch": epochs.get(row["step"]),
        }
        for row in read(folder / "tables.jsonl", TABLE)
        if all(isinstance(cells, list) for cells in row["rows"])
    }


def environment(file: Path) -> dict[str, str]:
    """`environment.json` as `key.sub`: text."""
    flat: dict[str, str] = {}
    for key, value in (read_json(file) or {}).items():
        parts = {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
        flat.update(
            {
                name: " ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
                for name, entry in parts.items()
            }
        )
    return flat


def _short(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{seconds:.1f} s"
