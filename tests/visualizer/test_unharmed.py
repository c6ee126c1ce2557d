"""A run with broken trackers ends as one without, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint import contents
from app.visualizer import jsonl

RunApp = Callable[..., Path]
SMALL = (
    "data.limit_train=100",
    "data.limit_val=40",
    "data.batch_size=16",
    "train.max_epochs=2",
    "model.width=4",
    "hooks.logger.interval=1",
    "randomness.seed=3",
)
CLOCKS = ("time", "seconds", "train/time", "train/data_time", "train/images_per_second")


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: tensor.tolist() for name, tensor in contents.load(folder / "checkpoints/epoch_2.pth")["model"].items()
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    found = jsonl.read(folder / "vis_data/scalars.jsonl")
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in found]


def test_a_raising_and_a_sleeping_tracker_change_nothing(run_app: RunApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plain = run_app("plain", *SMALL)
    faulty = run_app(
        "faulty",
        *SMALL,
        "trusted_packages=[faulty]",
        "+visualizer.gone._target_=faulty.Raising",
        "+visualizer.silent._target_=faulty.Sleeping",
    )
    assert weights(faulty) == weights(plain)
    assert rows(faulty) == rows(plain)
    log = (faulty / "app.log").read_text()
    assert log.count("visualizer.gone failed in config (ConnectionError: no route to host)") == 1
    assert log.count("visualizer.silent hangs in scalars") == 1
    assert log.count("switched off") == 2
