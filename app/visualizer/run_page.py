"""The page of one run: curves, pictures, tables, configuration, environment; one file that opens without a network."""

from __future__ import annotations

import base64
import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from app.errors import ConfigError
from app.files import read_json, warn_once
from app.metrics.names import metric_rules
from app.runs.record import flat
from app.visualizer.curves import charts, launch_seconds, resume_marks
from app.visualizer.jsonl import IMAGES, SCALARS, TABLE, picture_files, read, values
from app.visualizer.page import Block, render, rounded, table, tile

PICTURE_BYTES = 12 * 2**20
"""Pictures of more evaluations than fit in this are left out of the page, evenly; they stay in `images/`."""
PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"
ALBUMS = {"predictions": "predictions", "worst": "greatest losses"}
FOOTER = "Everything on this page is inside this one file; the numbers are also in scalars.jsonl beside it."


def page(folder: Path, titles: Mapping[str, str | None], running: bool, summary: Mapping[str, float]) -> str:
    """Render the page of what lies in `folder`, a run's vis_data."""
    rows = list(read(folder / "scalars.jsonl", SCALARS))
    config, settings = configuration(folder / "config.yaml")
    environment = read_json(folder.parent / "environment.json") or {}
    epochs = {row["step"]: row["epoch"] for row in rows}
    word, place = state(rows, settings, running)
    tested = place == "test"
    blocks: list[Block] = [{"kind": "tiles", "items": tiles(rows, settings)}]
    if overrides := environment.get("overrides"):
        again = shlex.join(["python", "-m", "app", *map(str, overrides)])
        blocks.append({"kind": "code", "text": again})
    marks = resume_marks(rows)
    learning, machine = charts(rows)
    if learning:
        blocks.append({"kind": "charts", "title": "Curves", "charts": learning, "marks": marks})
    if machine:
        title = "Gradients, time and memory"
        blocks.append({"kind": "charts", "title": title, "charts": machine, "marks": marks, "fold": True})
    albums = pictures(folder, epochs, tested)
    blocks += [{"kind": "heading", "text": "Pictures"}, *albums] if albums else []
    blocks += tables(folder, epochs, tested)
    blocks.append({"kind": "heading", "text": "Record"})
    if finite := [(name, rounded(value)) for name, value in summary.items() if math.isfinite(value)]:
        blocks.append({"kind": "pairs", "title": "Final and best metrics", "rows": finite, "open": True})
    if config:
        blocks.append({"kind": "text", "title": "Configuration", "text": config})
    if environment:
        blocks.append(
            {
                "kind": "pairs",
                "title": "Environment",
                "rows": [(name, as_text(value)) for name, value in flat(environment)],
            }
        )
    blocks.append({"kind": "footer", "text": FOOTER})
    written = datetime.now().isoformat(sep=" ", timespec="seconds")
    words = [titles["run"], titles["group"], place, f"written {written}"]
    return render(str(titles["experiment"]), words, blocks, badge=word)


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


def state(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], running: bool) -> tuple[str, str]:
    """Say whether the run goes on, was finished or stopped early, and where it is."""
    if not rows:
        return ("running" if running else "ended"), "nothing logged yet"
    if settings.get("mode") == "test":
        return ("running" if running else "finished"), "test"
    done = {"epoch": max(row["epoch"] for row in rows), "step": max(row["step"] for row in rows)}
    train = settings.get("train")
    train = train if isinstance(train, dict) else {}
    unit = "epoch" if train.get("by_epoch", True) else "step"
    length = train.get("max_epochs" if unit == "epoch" else "max_iters")
    length = length if isinstance(length, int) else None
    place = f"{unit} {done[unit]} of {length}" if length else f"{unit} {done[unit]}"
    return ("running" if running else "finished" if length and done[unit] >= length else "ended"), place


def tiles(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers at the top of the page: the watched metric, the last losses, and how long it took."""
    newest = values(rows[-1]) if rows else {}
    found = [tile(name, _short(value)) for name, value in newest.items() if name.startswith("test/")]
    for name, rule in watched(settings):
        points = [(values(row).get(name, math.nan), row) for row in rows if name in row]
        points = [point for point in points if math.isfinite(point[0])]
        if points:
            best, row = (min if rule == "less" else max)(points, key=lambda point: point[0])
            found.append(tile(f"best {name}", _short(best), f"epoch {row['epoch']}, step {row['step']}"))
            last, row = points[-1]
            found.append(tile(f"last {name}", _short(last), f"step {row['step']}"))
    for name in ("train/loss", "val/loss"):
        last_row = next((row for row in reversed(rows) if name in values(row)), None)
        if last_row is not None:
            found.append(tile(f"last {name}", _short(values(last_row)[name]), f"step {last_row['step']}"))
    if rows:
        ends = launch_seconds(rows)
        found.append(
            tile("duration", _duration(sum(ends)), "one launch" if len(ends) == 1 else f"in {len(ends)} launches")
        )
    return found


def watched(settings: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """The run's metric and its direction; nothing for a test, or where the settings do not say."""
    try:
        rules = metric_rules(settings) if settings.get("mode") == "train" else {}
    except (ConfigError, LookupError, TypeError, AttributeError):  # a config.yaml that somebody edited
        return []
    return list(rules.items())[:1]


def pictures(folder: Path, epochs: Mapping[int, int], tested: bool) -> list[Block]:
    """An album for each name of pictures: of each evaluation the pictures, as data addresses, with their captions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read(folder / "images.jsonl", IMAGES):
        if not row["name"].endswith("_grid"):  # the page lays single pictures out itself
            found.setdefault(row["name"], []).append(row)
    files = [file for rows in found.values() for row in rows for file in picture_files(folder, row)]
    size = sum(file.stat().st_size for file in files if file.exists())
    stride = max(1, math.ceil(size * 4 / 3 / PICTURE_BYTES))

    def entry(row: Mapping[str, Any]) -> dict[str, Any]:
        files = zip(picture_files(folder, row), row["captions"], strict=False)
        images = [
            {"source": source, "caption": str(caption)} for file, caption in files if (source := _data_address(file))
        ]
        return {"note": _place(row["step"], epochs, tested), "images": images}

    def title(name: str) -> str:
        phase, _, kind = name.partition("/")
        fixed = "" if tested or kind != "predictions" else " on the same images every time"
        return f"{phase}: {ALBUMS.get(kind, kind)}{fixed}"

    return [
        {"kind": "album", "title": title(name), "entries": [entry(row) for row in reversed(rows[::-1][::stride])]}
        for name, rows in found.items()
    ]


def _data_address(file: Path) -> str | None:
    """The picture as a data address; None where it is not whole."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return warn_once(file, error.strerror or str(error))
    if not (content.startswith(PNG_BEGIN) and content.endswith(PNG_END)):
        return warn_once(file, "it is no whole PNG picture")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def tables(folder: Path, epochs: Mapping[int, int], tested: bool) -> list[Block]:
    """The newest state of each table, those of evaluations first."""
    newest = {
        row["name"]: row
        for row in read(folder / "tables.jsonl", TABLE)
        if all(isinstance(cells, list) for cells in row["rows"])
    }
    groups: dict[str, list[Block]] = {"Per class": [], "Other tables": []}
    for name, row in newest.items():
        group = "Per class" if name.startswith(("val/", "test/")) else "Other tables"
        note = _place(row["step"], epochs, tested)
        if name.endswith("confusion"):
            groups[group].append(matrix(name, row["rows"], note))
        else:
            groups[group].append(table(row["columns"], row["rows"], title=name, note=note, bars=True))
    for phase in ("val", "test"):  # one of many classes is too large for tables.jsonl
        file = folder / "tables" / phase / "confusion.csv"
        if f"{phase}/confusion" not in newest and file.exists():
            with file.open(encoding="utf-8", errors="replace", newline="") as lines:
                groups["Per class"].append(matrix(f"{phase}/confusion", list(csv.reader(lines))[1:], ""))
    return [
        block
        for title, blocks in groups.items()
        if blocks
        for block in ({"kind": "heading", "text": title}, {"kind": "columns", "blocks": blocks})
    ]


def matrix(title: str, rows: Sequence[Sequence[Any]], note: str) -> Block:
    """A confusion matrix of rows [truth, count, …]: the names, and [row, column, count] of what is not zero."""
    names, counts = [str(row[0]) for row in rows if row], []
    for index, (_, *cells) in enumerate(row for row in rows if row):
        for column, cell in enumerate(cells):
            with suppress(ValueError, TypeError):
                if count := int(cell):
                    counts.append([index, column, count])
    return {
        "kind": "matrix",
        "title": title,
        "note": note,
        "names": names,
        "counts": counts,
    }


def as_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _place(step: int, epochs: Mapping[int, int], tested: bool) -> str:
    if tested:
        return f"step {step}"
    return f"epoch {epochs[step]} · step {step}" if step in epochs else f"step {step}"


def _short(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{seconds:.1f} s"
