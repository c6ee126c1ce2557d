"""Pictures through the real command line: fixed images, truth and losses of the right samples, every backend."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make

from app.config.schema.hooks import VisualizationConf
from app.hooks import visualization
from app.hooks.visualization import verdict
from app.metrics.metrics import Evaluation
from app.visualizer import draw, jsonl

RunApp = Callable[..., Path]
SMALL = ["hooks=[default,visualization]", "randomness.seed=1", "logging.progress=false"]


class Kept:
    """A visualizer that keeps pictures and captions."""

    def __init__(self) -> None:
        self.given: dict[str, list[tuple[int, list[Any], list[str]]]] = {}

    def images(self, name: str, images: list[Any], captions: list[str], step: int) -> None:
        self.given.setdefault(name, []).append((step, images, captions))


def evaluation(losses: list[float], multi_label: bool = False) -> Evaluation:
    count = len(losses)
    predictions = torch.arange(count)[:, None] % 3
    targets = torch.eye(3)[torch.arange(count) % 2] if multi_label else torch.arange(count) % 2
    return Evaluation(
        metrics={},
        losses=torch.tensor(losses),
        predictions=predictions,
        scores=torch.full((count,), 0.625),
        targets=targets,
        classes=["cat", "dog", "owl"],
    )


def run_of(found: Evaluation, folder: Path) -> Any:
    """What the hook needs of a run; image number i is all i."""

    def sample_images(split: str, indices: list[int]) -> torch.Tensor:
        assert split == "val"
        return torch.stack([torch.full((1, 8, 8), index, dtype=torch.uint8) for index in indices])

    return SimpleNamespace(
        world=SimpleNamespace(is_main=True),
        evaluation=found,
        phase="val",
        folder=folder / "digits" / "2026-01-01",
        data=SimpleNamespace(classes=found.classes, sample_images=sample_images),
        state=SimpleNamespace(progress=SimpleNamespace(step=9, epoch=3)),
        visualizer=Kept(),
    )


def shown_value(tile: draw.Picture) -> int:
    """Which image a tile shows."""
    return int(tile[draw.MARGIN + 5, draw.MARGIN + 5, 0])


def test_the_captions_tell_of_the_images_shown(tmp_path: Path) -> None:
    run = run_of(evaluation([0.1 * index for index in range(20)]), tmp_path)
    make(VisualizationConf(enable=True, max_images=4, worst=3)).eval_end(run, {})
    ((step, tiles, captions),) = run.visualizer.given["val/predictions"]
    assert (step, len(tiles)) == (9, 4)
    samples = [int(caption.rsplit(" ", 1)[1]) for caption in captions]
    assert samples == [2, 7, 12, 17] == [shown_value(tile) for tile in tiles]
    assert captions[0] == "wrong: owl 62 %, truth cat, sample 2"
    assert captions[1] == "right: dog 62 %, truth dog, sample 7"
    ((_, (sheet,), _),) = run.visualizer.given["val/predictions_grid"]
    assert sheet.shape[0] > tiles[0].shape[0]


def test_the_worst_come_first_and_nan_is_worst(tmp_path: Path) -> None:
    run = run_of(evaluation([0.5, 3.0, float("nan"), 0.1, 2.0]), tmp_path)
    make(VisualizationConf(enable=True, max_images=1, worst=3)).eval_end(run, {})
    ((_, tiles, captions),) = run.visualizer.given["val/worst"]
    assert [shown_value(tile) for tile in tiles] == [2, 1, 4]
    assert "loss nan" in captions[0]
    assert "loss 3.00" in captions[1]


def test_several_labels_are_right_when_the_likeliest_is_among_them() -> None:
    found = evaluation([0.0] * 4, multi_label=True)
    assert verdict(found, 0, found.classes) == ("cat", "62 %", "cat", True)
    assert verdict(found, 2, found.classes) == ("owl", "62 %", "cat", False)
    found.targets[2] = torch.tensor([0.0, 1.0, 1.0])
    assert verdict(found, 2, found.classes) == ("owl", "62 %", "dog, owl", True)
    found.targets[2] = 0
    assert verdict(found, 2, found.classes) == ("owl", "62 %", "none", False)


def test_it_draws_at_its_interval_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    run = run_of(evaluation([1.0] * 4), tmp_path)
    hook = make(VisualizationConf(enable=True, interval=2))
    drawn = []
    for number in range(1, 8):
        if number == 4:
            state = hook.state_dict()
            hook = make(VisualizationConf(enable=True, interval=2))
            hook.load_state_dict(state)
        run.visualizer = Kept()
        hook.eval_end(run, {})
        if run.visualizer.given:
            drawn.append(number)
    assert drawn == [2, 4, 6]


def test_off_and_other_ranks_draw_nothing(tmp_path: Path) -> None:
    run = run_of(evaluation([1.0] * 4), tmp_path)
    make(VisualizationConf()).eval_end(run, {})
    run.world.is_main = False
    make(VisualizationConf(enable=True)).eval_end(run, {})
    assert not run.visualizer.given


def test_rescale_factor_and_out_dir(tmp_path: Path) -> None:
    run = run_of(evaluation([1.0] * 4), tmp_path)
    hook = make(VisualizationConf(enable=True, rescale_factor=20.0, out_dir=str(tmp_path / "out"), worst=2))
    hook.eval_end(run, {})
    files = sorted(file for file in (tmp_path / "out/digits/2026-01-01").iterdir())
    names = [
        f"val_{kind}_step_9_sample_{sample}.png"
        for kind, count in (("predictions", 4), ("worst", 2))
        for sample in range(count)
    ]
    assert [file.name for file in files] == names
    ((_, tiles, _),) = run.visualizer.given["val/predictions"]
    assert tiles[0].shape[1] == 160 + 2 * draw.MARGIN
    assert np.array_equal(np.asarray(Image.open(files[0])), tiles[0])


def test_show_without_a_display_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(visualization.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    hook = make(VisualizationConf(enable=True, show=True))
    hook.attach(run_of(evaluation([1.0]), tmp_path))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no display" in record.getMessage()
    assert not hook.show


def test_a_real_run_shows_the_same_images_at_every_validation(run_app: RunApp) -> None:
    folder = run_app(
        "run",
        *SMALL,
        "train.max_epochs=2",
        "hooks.visualization.max_images=5",
        "hooks.visualization.worst=2",
        "visualizer=[local,tensorboard]",
    )
    vis_data = folder / "vis_data"
    rows = list(jsonl.read(vis_data / "images.jsonl"))
    counts = {"val/predictions": 5, "val/predictions_grid": 1, "val/worst": 2, "val/worst_grid": 1}
    for name, count in counts.items():
        mine = [row for row in rows if row["name"] == name]
        assert [len(row["files"]) for row in mine] == [count, count]
        assert all((vis_data / file).is_file() for row in mine for file in row["files"])
    first, second = [row for row in rows if row["name"] == "val/predictions"]
    samples = [[caption.rsplit(" ", 1)[1] for caption in row["captions"]] for row in (first, second)]
    assert samples[0] == samples[1]
    width = 112 + 3
    for one, other in zip(first["files"], second["files"], strict=True):
        images = [
            np.asarray(Image.open(vis_data / file))[draw.MARGIN : width, draw.MARGIN : width] for file in (one, other)
        ]
        assert np.array_equal(*images), "the same pixels"
    tables = [row["name"] for row in jsonl.read(vis_data / "tables.jsonl")]
    assert tables == ["val/per_class", "val/confusion"] * 2
    confusion = [row for row in jsonl.read(vis_data / "tables.jsonl") if row["name"] == "val/confusion"][-1]
    counts_of = np.array([row[1:] for row in confusion["rows"]])
    top1 = [row["val/top1"] for row in jsonl.read(vis_data / "scalars.jsonl") if "val/top1" in row][-1]
    assert counts_of.trace() / counts_of.sum() == pytest.approx(top1)
    page = (vis_data / "report.html").read_text()
    assert page.count('"source": "data:image/png;base64,') == 2 * (5 + 2), "the matrix is drawn from its table"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(vis_data / "tensorboard"))
    events.Reload()
    assert {"val/predictions/4", "val/predictions_grid", "val/worst/1"} <= set(events.Tags()["images"])


def test_pictures_change_no_weight(run_app: RunApp) -> None:
    def hashes(folder: Path) -> dict[str, Any]:
        rows = (folder / "vis_data/scalars.jsonl").read_text().splitlines()
        return {
            f"{row['step']} {name}": value
            for row in map(json.loads, rows)
            for name, value in row.items()
            if name in ("train/loss", "val/loss", "val/top1")
        }

    plain = run_app("plain", "randomness.seed=1", "train.max_epochs=1", "logging.progress=false")
    drawn = run_app("drawn", *SMALL, "train.max_epochs=1", "hooks.visualization.worst=4")
    assert hashes(plain) == hashes(drawn)
