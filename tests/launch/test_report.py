"""The report of a sweep folder, finished or not."""

import csv
import json
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from app.launch import report
from app.launch.page import failures, groups, page, tiles
from app.launch.report import main, write_report
from app.launch.results import read_sweep
from app.visualizer.page import as_script


def make_point(sweep: Path, name: str, axes: dict[str, Any], state: str, curve: list[float], **record: Any) -> Path:
    folder = sweep / name
    (folder / "vis_data").mkdir(parents=True)
    overrides = [f"{key}={value}" for key, value in axes.items()]
    about = {"axes": axes, "overrides": overrides, "identity": name, "state": state, "length": 2, "launches": 1}
    (folder / "job.json").write_text(json.dumps({**about, "reason": None, "error": None, **record}))
    rows = [{"step": 10 * n, "epoch": n, "val/top1": value, "val/loss": 1 - value} for n, value in enumerate(curve, 1)]
    lines = [json.dumps(row) for row in [{"step": 5, "train/loss": "NaN"}, *rows]]
    (folder / "vis_data" / "scalars.jsonl").write_text("\n".join([*lines, '{"step": 99, "val/to']))
    if state == "done":
        done = {
            "metric": "val/top1",
            "best": max(curve, default=0),
            "step": 10 * len(curve),
            "length": 2,
            "metrics": {},
        }
        (folder / "DONE.json").write_text(json.dumps(done))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "digits" / "sweep_2026"
    make_point(folder, "lr-0.1__seed-0", {"optim.lr": 0.1, "randomness.seed": 0}, "done", [0.5, 0.9])
    make_point(folder, "lr-0.1__seed-1", {"optim.lr": 0.1, "randomness.seed": 1}, "done", [0.8, 0.7])
    make_point(folder, "lr-1__seed-0", {"optim.lr": 1, "randomness.seed": 0}, "running", [0.95])
    make_point(
        folder,
        "lr-1__seed-1",
        {"optim.lr": 1, "randomness.seed": 1},
        "failed",
        [],
        reason="killed by SIGKILL",
        error="<b>last</b> words",
    )
    (folder / "sweep.json").write_text(json.dumps({"keys": [], "command": ["python", "-m", "app", "resume=false"]}))
    return folder


def test_csv_ranks_all_points(sweep: Path) -> None:
    assert main([str(sweep)]) == 0
    with (sweep / report.CSV).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == ["lr-1__seed-0", "lr-0.1__seed-0", "lr-0.1__seed-1", "lr-1__seed-1"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""]
    assert [row["state"] for row in rows] == ["running", "done", "done", "failed"]
    assert [row["val/top1"] for row in rows] == ["0.95", "0.9", "0.8", ""]
    assert rows[3]["reason"] == "killed by SIGKILL"
    assert rows[3]["error"] == "<b>last</b> words"


def test_mean_and_spread_over_seeds(sweep: Path) -> None:
    found = {group.axes["optim.lr"]: group for group in read_sweep(sweep).groups()}
    assert found[0.1].mean == pytest.approx(0.85)
    assert found[0.1].spread == pytest.approx(0.0707107)
    assert found[1].spread is None
    assert 0.85 in groups(read_sweep(sweep))["rows"][-1]


def test_a_loss_is_ranked_from_below(sweep: Path) -> None:
    for path in sweep.glob("*/DONE.json"):
        done = json.loads(path.read_text())
        path.write_text(json.dumps({**done, "metric": "val/loss", "best": 1 - done["best"]}))
    points = [point.name for point in read_sweep(sweep).points if point.value is not None]
    assert points == ["lr-1__seed-0", "lr-0.1__seed-0", "lr-0.1__seed-1"]


def test_points_that_were_only_tested_are_ranked(tmp_path: Path) -> None:
    for name, value in (("tta-null", 0.8), ("tta-flip", 0.9)):
        folder = make_point(tmp_path, name, {"tta": name}, "done", [])
        (folder / "DONE.json").unlink()
        (folder / "vis_data" / "scalars.jsonl").write_text(json.dumps({"step": 5, "test/top1": value}))
    assert [(point.name, point.value) for point in read_sweep(tmp_path).points] == [
        ("tta-flip", 0.9),
        ("tta-null", 0.8),
    ]


def test_failures_come_with_a_command_that_retries(sweep: Path) -> None:
    _, every, blocks = failures(read_sweep(sweep))
    assert every["text"] == "python -m app resume=true"
    (item,) = blocks["items"]
    assert item["reason"] == "killed by SIGKILL"
    assert item["error"] == "<b>last</b> words"
    assert f"hydra.run.dir={sweep / 'lr-1__seed-1'} resume=auto" in item["command"]


def test_a_job_that_ended_without_its_launcher_is_a_failure(sweep: Path) -> None:
    (sweep / "lr-1__seed-0" / ".result.json").write_text(json.dumps({"error": "bad picture", "exit_code": 65}))
    (failed,) = (point for point in read_sweep(sweep).failures if point.name == "lr-1__seed-0")
    assert (failed.reason, failed.error) == ("exit code 65", "bad picture")


def test_the_best_setting_is_that_of_the_best_mean(sweep: Path) -> None:
    assert tiles(read_sweep(sweep))[1] == {
        "label": "best mean over seeds",
        "value": "0.85 ± 0.071",
        "note": "optim.lr=0.1 (2 seeds)",
    }


def test_long_values_keep_both_ends(sweep: Path) -> None:
    for number, path in enumerate(sorted(sweep.glob("*/job.json"))):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "axes": {"data.root": f"/data/{'x' * 300}/{number}"}}))
    text = page(read_sweep(sweep))
    assert "x" * 100 not in text
    assert all(f'xxx/{number}"' in text for number in range(4))


def test_nothing_in_the_data_can_end_the_script_element() -> None:
    assert "<" not in as_script({"name": "</script><script>alert(1)</script>"})


def test_an_empty_sweep_and_no_sweep(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sweep.glob("*/vis_data"):
        shutil.rmtree(path)
    for path in sweep.glob("*/DONE.json"):
        path.unlink()
    assert "no result yet" in page(read_sweep(sweep))
    assert main([str(tmp_path / "nothing")]) == 64
    assert "holds no sweep" in capsys.readouterr().err


def test_an_installed_app_has_every_part_of_its_pages() -> None:
    root = Path(__file__).parents[2]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in (root / "app").rglob("*.*"):
        if path.suffix in (".py", ".pyc"):
            continue
        package = ".".join(path.parent.relative_to(root).parts)
        assert any(fnmatch(path.name, pattern) for pattern in packaged[package]), f"{path.name} is not in the wheel"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_the_page(sweep: Path, tmp_path: Path) -> None:
    write_report(sweep)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shown = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=3000", "--dump-dom", f"file://{sweep / report.PAGE}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    dom = shown[shown.index("<main") : shown.index("</main>")]
    assert dom.count('<svg width="') == 2, "the effect of optim.lr, and the curves"
    assert dom.count('class="curve') == 3 + 1, "three points with results; the mean"
    assert ">optim.lr</option>" in dom
    assert "<b>last" not in dom
