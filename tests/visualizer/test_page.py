"""The page of a run: its numbers, and that a real browser draws it without a network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.visualizer.curves import charts, exact_epochs, launch_seconds, resume_marks
from app.visualizer.local import Local
from app.visualizer.run_page import matrix, page, pictures, state, tables, tiles

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]
HOSTILE = '</script><script>document.title="hacked"</script>'
SETTINGS: dict[str, Any] = {"mode": "train", "metrics": {"topk": [1], "average": ["macro"], "monitor": "auto"}}
TITLES = {"run": "2026-01-01_00-00-00", "experiment": "digits & <co>", "group": None}


def row(step: int, epoch: int, **values: object) -> dict[str, object]:
    return {"step": step, "epoch": epoch, "time": 1000.0 + step, "seconds": float(step), **values}


@pytest.fixture(scope="module")
def vis_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three epochs of ten steps leaves."""
    folder = tmp_path_factory.mktemp("run") / "vis_data"
    backend = Local(folder, "2026-01-01_00-00-00", "digits")
    backend.config({"train": {"by_epoch": True, "max_epochs": 3}, **SETTINGS, "note": HOSTILE})
    (folder.parent / "environment.json").write_text(
        json.dumps({"overrides": ["a=1", "b=2"], "machine": {"host": "box"}})
    )
    for step in range(1, 31):
        loss = float("nan") if step == 5 else 1 / step
        backend.scalars(
            {"train/loss": loss, "train/top1": step / 30, "train/lr": 0.1, "train/time": 0.01}, step, step // 10
        )
        if step % 10 == 0:
            values = {"val/loss": 2 / step, "val/top1": 0.9 if step == 20 else 0.8}
            backend.scalars({**values, "val/f1": 0.7, "val/f1_origin": 0.6}, step, step // 10)
            picture = np.full((20, 20, 3), step, dtype=np.uint8)
            backend.images("val/predictions", [picture, picture], [f"caption {step} {HOSTILE}", "b"], step)
            backend.images("val/predictions_grid", [picture], ["all"], step)
            backend.table("val/per_class", ["class", "f1"], [["a", 0.5], ["b", float("nan")]], step)
            backend.table("profile/operators", ["operator", "ms"], [["conv", 1.5]], step)
            backend.table("val/confusion", ["truth", "a", "b"], [["a", 3, 1], ["b", 0, 4]], step)
    backend.close({"best/val/top1": 0.9})
    return folder


def test_state_says_how_it_ended() -> None:
    settings = {"train": {"by_epoch": True, "max_epochs": 3}}
    assert state([row(30, 3)], settings, running=False) == ("finished", "epoch 3 of 3")
    assert state([row(20, 2)], settings, running=False) == ("ended", "epoch 2 of 3")
    assert state([row(20, 2)], settings, running=True)[0] == "running"
    assert state([], {}, running=True)[1] == "nothing logged yet"
    by_step = {"train": {"by_epoch": False, "max_iters": 25}}
    assert state([row(25, 2)], by_step, running=False) == ("finished", "step 25 of 25")


def test_best_is_by_the_watched_metric() -> None:
    rows = [row(1, 1, **{"val/top1": 0.9, "val/loss": 0.1}), row(2, 2, **{"val/top1": 0.8, "val/loss": "NaN"})]
    found = {tile["label"]: tile["value"] for tile in tiles(rows, SETTINGS)}
    assert (found["best val/top1"], found["last val/top1"]) == ("0.9000", "0.8000")
    watched = SETTINGS["metrics"] | {"monitor": "val/loss"}
    found = {tile["label"]: tile["value"] for tile in tiles(rows, SETTINGS | {"metrics": watched})}
    assert found["best val/loss"] == "0.1000"


def test_best_is_the_least_where_less_is_better() -> None:
    extra = {"error": {"_target_": "torchmetrics.HammingDistance"}}
    settings = SETTINGS | {"metrics": SETTINGS["metrics"] | {"monitor": "error", "extra": extra}}
    rows = [row(1, 1, **{"val/error": 0.3}), row(2, 2, **{"val/error": 0.2}), row(3, 3, **{"val/error": 0.4})]
    assert {tile["label"]: tile["value"] for tile in tiles(rows, settings)}["best val/error"] == "0.2000"


def test_time_counts_every_launch_once() -> None:
    first = [row(step, 0) | {"time": 100.0 + step, "seconds": 1.0 * step} for step in (1, 2, 3)]
    second = [row(step, 0) | {"time": 200.0 + step, "seconds": 1.0 * step} for step in (4, 5)]
    assert launch_seconds(first + second) == [3.0, 5.0]


def test_epochs_are_exact_between_their_ends() -> None:
    rows = [row(5, 0), row(10, 1), row(15, 1), row(20, 2), row(25, 2)]
    assert exact_epochs(rows) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert exact_epochs([row(5, 0), row(10, 0)]) == [0.0, 0.0]


def test_a_long_curve_keeps_ends_and_spikes() -> None:
    rows = [row(step, 0, **{"train/loss": 1000.0 if step == 4321 else step / 1e4}) for step in range(1, 20_001)]
    ((chart,), _) = charts(rows)
    (curve,) = chart["curves"]
    assert len(curve["step"]) < 2100
    assert (curve["step"][0], curve["step"][-1]) == (1, 20_000)
    assert max(curve["value"]) == 1000.0
    assert curve["step"] == sorted(curve["step"])


def test_phases_and_raw_weights_share_a_chart() -> None:
    rows = [row(1, 1, **{"train/top1": 0.5, "val/top1": 0.6, "val/top1_origin": 0.4, "val/loss": 1.0})]
    titles = {chart["title"]: [curve["name"] for curve in chart["curves"]] for chart in charts(rows)[0]}
    assert titles == {"loss": ["val/loss"], "top1": ["train/top1", "val/top1", "val/top1_origin"]}


def test_too_many_pictures_are_thinned_evenly(vis_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (every,) = pictures(vis_data, {10: 1, 20: 2, 30: 3}, tested=False)
    notes = ["epoch 1 · step 10", "epoch 2 · step 20", "epoch 3 · step 30"]
    assert [entry["note"] for entry in every["entries"]] == notes
    monkeypatch.setattr("app.visualizer.run_page.PICTURE_BYTES", 400)
    (fewer,) = pictures(vis_data, {}, tested=False)
    assert fewer["entries"][-1]["note"] == "step 30"
    assert len(fewer["entries"]) < 3


def test_the_page_needs_nothing_else(vis_data: Path) -> None:
    text = page(vis_data, TITLES, running=False, summary={"best/val/top1": 0.9, "x": float("nan")})
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:|url\(https?:|@import", text)
    assert len(text) < 100_000, "it carries no library"
    assert "<title>digits &amp; &lt;co&gt;</title>" in text
    assert "</script><script>document" not in text


def browser(page: Path, scratch: Path, script: str = "", *flags: str) -> "subprocess.CompletedProcess[str]":
    """Open `page` in a browser without a network, run `script` in it at its end, and return what it shows by then."""
    assert CHROMIUM is not None
    copy = scratch / "page.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return subprocess.run(
        [
            *(CHROMIUM, *FLAGS, *flags, "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={scratch / 'profile'}", "--dump-dom", f"file://{copy}"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


POINTER = """
function point(kind, x, y) {
  const box = first.getBoundingClientRect();
  const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};
  first.dispatchEvent(new PointerEvent(kind, {...at, bubbles: true, pointerType: "mouse"}));
}
const labels = () => [...first.querySelectorAll("svg > text")].map((text) => text.textContent).join(" ");
const first = document.querySelector(".plot"), found = [];
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_plot_answers_the_pointer(vis_data: Path, tmp_path: Path) -> None:
    script = (
        POINTER
        + """
    point("pointermove", 0.6, 0.5);
    found.push(first.querySelector(".tip").innerText, labels());
    for (const [kind, x] of [["pointerdown", 0.6], ["pointermove", 0.9], ["pointerup", 0.9]]) point(kind, x, 0.5);
    found.push(labels());
    first.dispatchEvent(new MouseEvent("dblclick")); found.push(labels());
    document.querySelector(".legend button").click(); found.push(first.querySelectorAll(".curve").length);
    document.querySelector(".row button").click(); found.push(labels());
    document.title = JSON.stringify(found);
    """
    )
    shown = browser(vis_data / "report.html", tmp_path, script)
    tip, before, zoomed, reset, curves, by_epoch = title_of(shown.stdout)
    assert re.fullmatch(r"step 1\d\s+train/loss: 0\.0\d+(\s+val/loss: .*)?", tip.strip()), tip
    assert before.endswith("step")
    assert zoomed != before == reset
    assert curves == 1
    assert by_epoch.endswith("epoch")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_dark_and_narrow_screen(vis_data: Path, tmp_path: Path) -> None:
    script = """
    const inside = (element) => element.closest(".scroll, .matrix, .plot");
    const wide = [...document.querySelectorAll("main *")].filter((element) => !inside(element)
      && element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML);
    document.title = JSON.stringify([getComputedStyle(document.body).backgroundColor, wide]);
    """
    shown = browser(vis_data / "report.html", tmp_path, script, "--force-dark-mode", "--window-size=390,900")
    assert title_of(shown.stdout) == ["rgb(14, 17, 22)", []]


def title_of(dom: str) -> Any:
    """What a script wrote into the page's title."""
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))


def test_marks_where_a_run_was_resumed() -> None:
    first = [row(step, step // 2) | {"time": 100.0 + step, "seconds": 1.0 * step} for step in (1, 2, 3)]
    second = [row(step, step // 2) | {"time": 200.0 + step, "seconds": 1.0 * step} for step in (4, 5)]
    (mark,) = resume_marks(first + second)
    assert (mark["step"], mark["epoch"]) == (3, 1.5)
    assert resume_marks(first) == resume_marks([]) == []


def test_a_matrix_of_many_classes_comes_from_its_file(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(200)]
    backend = Local(tmp_path, "run", "digits", page=False)
    rows = [[name, *[int(row == column) for column in range(200)]] for row, name in enumerate(names)]
    backend.table("val/confusion", ["truth", *names], rows, 1)
    _, columns = tables(tmp_path, {}, tested=False)
    (found,) = columns["blocks"]
    assert found == matrix("val/confusion", rows, "")
    assert found["counts"] == [[index, index, 1] for index in range(200)]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_it(vis_data: Path, tmp_path: Path) -> None:
    shown = browser(vis_data / "report.html", tmp_path)
    dom = shown.stdout[shown.stdout.index("<main") : shown.stdout.index("</main>")]
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert "hacked" not in shown.stdout[: shown.stdout.index("</title>")]
    assert dom.count('<svg width="') == 6, "loss, top1, f1, lr, time and the confusion matrix"
    assert dom.count('class="curve') == 8
    both = dom[dom.index(">f1<") : dom.index(">learning rate<")]
    assert len(set(re.findall(r'class="curve[^>]*stroke: ([^;"]*)', both))) == 2, (
        "the average and the raw weights differ"
    )
    assert re.findall(r'<rect x="[^>]*opacity="([^"]*)"', dom) == ["0.866", "0.500", "1.000"], "3, 1 of 4; 4 of 4"
    assert len(re.findall(r'<img src="data:image/png;base64,', dom)) == 2
    assert "caption 30" in dom
    per_class, other = dom[dom.index(">Per class<") :].split(">Other tables<")
    assert "val/confusion" in per_class
    assert "profile/operators" in other
    assert "best val/top1" in dom
    assert "0.9000" in dom
    assert ">finished<" in dom
    assert "epoch 3 of 3" in dom
    assert "max_epochs: 3" in dom
    assert "machine.host" in dom


def test_a_test_shows_its_metrics_and_no_curves() -> None:
    rows = [row(0, 0, **{"test/top1": 0.75, "test/loss": 0.5})]
    shown = [(tile["label"], tile["value"]) for tile in tiles(rows, {"mode": "test"})]
    assert shown[:2] == [("test/top1", "0.7500"), ("test/loss", "0.5000")]
    assert charts(rows) == ([], [])
    assert state(rows, {"mode": "test"}, running=False) == ("finished", "test")
