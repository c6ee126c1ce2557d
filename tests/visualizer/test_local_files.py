"""The local backend: valid JSON, safe names, nothing lost by a kill, nothing left of what was rewound."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from app.visualizer import jsonl
from app.visualizer.jsonl import LineWriter
from app.visualizer.local import Local, safe_path

PICTURE = np.full((5, 7, 3), 200, dtype=np.uint8)


def local(folder: Path, page: bool = False) -> Local:
    return Local(folder / "vis_data", "run", "digits", page=page)


def strict_rows(path: Path) -> list[dict[str, Any]]:
    """As a parser reads them that knows JSON only."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def cells(table: Path) -> list[list[str]]:
    return list(csv.reader(table.read_text().splitlines()))


def write(backend: Local, steps: range) -> None:
    for step in steps:
        backend.scalars({"train/loss": 1 / step}, step, step // 4)
        if step % 4 == 0:
            backend.scalars({"val/top1": step / 100}, step, step // 4)
            backend.images("val/predictions", [PICTURE, PICTURE], ["a", "b"], step)
            backend.table("val/per_class", ["class", "f1"], [["cat, dog", step / 10]], step)


def test_a_row_has_epoch_and_step_and_is_json_whatever_the_value(tmp_path: Path) -> None:
    backend = local(tmp_path)
    backend.scalars({"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": np.float32(0.5)}, 7, 2)
    (row,) = strict_rows(tmp_path / "vis_data/scalars.jsonl")
    assert {name: row[name] for name in ("step", "epoch", "a", "b", "c", "d")} == {
        "step": 7,
        "epoch": 2,
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "d": 0.5,
    }
    assert np.isnan(float(row["a"]))
    assert float(row["c"]) == float("-inf")


def test_rewind_drops_all_that_is_later(tmp_path: Path) -> None:
    backend = local(tmp_path)
    write(backend, range(1, 11))
    backend.rewind(5)
    write(backend, range(6, 9))
    backend.close({})
    folder = tmp_path / "vis_data"
    rows = strict_rows(folder / "scalars.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "val/top1" in row] == [4, 8]
    assert [row["step"] for row in strict_rows(folder / "images.jsonl")] == [4, 8]
    pictures = sorted(file.name for file in (folder / "images/val/predictions").iterdir())
    assert pictures == ["step_4_0.png", "step_4_1.png", "step_8_0.png", "step_8_1.png"]


def test_rewind_keeps_the_pictures_and_rows_of_the_restored_step(tmp_path: Path) -> None:
    backend = local(tmp_path)
    write(backend, range(1, 9))
    backend.rewind(8)
    folder = tmp_path / "vis_data"
    assert {row["step"] for row in strict_rows(folder / "scalars.jsonl")} == set(range(1, 9))
    assert [row["step"] for row in strict_rows(folder / "images.jsonl")] == [4, 8]
    assert (folder / "images/val/predictions/step_8_0.png").exists()
    assert cells(folder / "tables/val/per_class.csv")[1:] == [["cat, dog", "0.8"]]


def test_rewind_restores_the_table_of_that_time(tmp_path: Path) -> None:
    backend = local(tmp_path)
    table = tmp_path / "vis_data/tables/val/per_class.csv"
    write(backend, range(1, 9))
    assert cells(table)[1:] == [["cat, dog", "0.8"]]
    backend.rewind(4)
    assert cells(table) == [["class", "f1"], ["cat, dog", "0.4"]]
    backend.rewind(3)
    assert not table.exists()


def test_rewind_of_nothing_writes_nothing(tmp_path: Path) -> None:
    backend = local(tmp_path)
    backend.rewind(0)
    assert not (tmp_path / "vis_data").exists()


def test_a_torn_line_is_left_out_and_removed_by_rewind(tmp_path: Path) -> None:
    backend = local(tmp_path)
    write(backend, range(1, 4))
    path = tmp_path / "vis_data/scalars.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "epo')
    assert [row["step"] for row in jsonl.read(path)] == [1, 2, 3]
    again = local(tmp_path)
    again.rewind(3)
    write(again, range(4, 6))
    assert [row["step"] for row in strict_rows(path) if "train/loss" in row] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_after_a_full_disk_the_next_row_is_whole(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "rows.jsonl")
    writer.write({"step": 1})
    assert writer.file is not None
    good = writer.file
    full = os.open("/dev/full", os.O_WRONLY)
    writer.file = full
    with pytest.raises(OSError, match="No space left"):
        writer.write({"step": 2})
    os.close(full)
    os.write(good, b'{"step": 2, "a')  # as much as there was room for
    writer.file = good
    writer.write({"step": 3})
    assert [row["step"] for row in jsonl.read(writer.path)] == [1, 3]


def test_no_row_is_lost_by_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from app.visualizer.local import Local
backend = Local(Path({str(tmp_path / "vis_data")!r}), "run", "digits")
for step in range(1, 200):
    backend.scalars({{"train/loss": 1 / step}}, step, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    assert [row["step"] for row in strict_rows(tmp_path / "vis_data/scalars.jsonl")] == list(range(1, 200))


def test_names_stay_inside_the_folder_and_distinct(tmp_path: Path) -> None:
    names = ["a b", "a_b", "a?b", "../../x", "/etc/x", ".hidden", "ä", "ö", "con/aux", "a" * 300, "a" * 299]
    paths = [safe_path(name) for name in names]
    assert len({str(path).lower() for path in paths}) == len(names)
    for path in paths:
        assert ".." not in path.parts
        assert not path.is_absolute()
        assert all(part.isascii() and len(part) < 130 for part in path.parts)
    backend = local(tmp_path)
    backend.images("../../x y", [PICTURE], ["c"], 1)
    (row,) = strict_rows(tmp_path / "vis_data/images.jsonl")
    assert (tmp_path / "vis_data" / row["files"][0]).resolve().is_relative_to(tmp_path / "vis_data/images")


def test_pictures_and_config_read_back(tmp_path: Path) -> None:
    backend = local(tmp_path)
    config = {"name": "ü", "train": {"max_epochs": 3}, "key": "${oc.env:SECRET}", "none": None, "list": [1, 2.5]}
    backend.config(config)
    backend.images("val/predictions", [PICTURE], ["c"], 3)
    folder = tmp_path / "vis_data"
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config
    assert np.array_equal(np.asarray(Image.open(folder / "images/val/predictions/step_3_0.png")), PICTURE)


def test_a_huge_table_is_kept_in_its_newest_state_only(tmp_path: Path) -> None:
    backend = local(tmp_path)
    names = [f"class {index}" for index in range(200)]
    for step in (1, 2):
        backend.table("val/confusion", ["truth", *names], [[name, *[step] * 200] for name in names], step)
    assert not (tmp_path / "vis_data/tables.jsonl").exists()
    rows = cells(tmp_path / "vis_data/tables/val/confusion.csv")
    assert (len(rows), len(rows[0]), rows[1][1]) == (201, 201, "2")


def test_a_row_after_a_torn_one_starts_on_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for torn in (b'{"step": 1}\n{"step": 2, "tr', b'{"step": 1}\n' + bytes(5000), b'{"step": 1}\n'):
        path.write_bytes(torn)
        writer = LineWriter(path)
        writer.write({"step": 3})
        writer.close()
        assert strict_rows(path) == [{"step": 1}, {"step": 3}]


def test_rewind_removes_no_file_outside_of_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    backend = local(tmp_path)
    backend.image_rows.write(
        {"step": 9, "name": "a", "files": ["../precious", "images/../../precious"], "captions": []}
    )
    backend.rewind(1)
    assert (tmp_path / "precious").exists()


def test_words_are_no_formulas_and_no_commands_to_a_terminal(tmp_path: Path) -> None:
    backend = local(tmp_path)
    names = ["=1+1", "+cmd", "-x", "@sum", "\t=1", "-0.5", "plain", "\x1b]0;title\x07"]
    backend.table("val/per_class", ["class", "=f1"], [[name, -0.5] for name in names], 1)
    rows = cells(tmp_path / "vis_data/tables/val/per_class.csv")
    assert rows[0] == ["class", "'=f1"]
    assert [row[0] for row in rows[1:]] == [
        "'=1+1", "'+cmd", "'-x", "'@sum", "'\t=1", "-0.5", "plain", "\\x1b]0;title\\x07",
    ]  # fmt: skip
    assert {row[1] for row in rows[1:]} == {"-0.5"}
