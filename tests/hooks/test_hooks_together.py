"""The hooks through the real command line, alone and all at once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from app.errors import RunError

SMALL = ["train.max_epochs=4", "data.limit_train=256", "data.limit_val=100", "model.width=4", "randomness.seed=3"]
SCHEDULE = (
    "[{epoch: 1, augment: [flip], batch_augment: {mixup: {alpha: 0.2, prob: 0.5}}},"
    "{epoch: 2, loss: {label_smoothing: 0.1}}]"
)
ALL = [
    "hooks=[default,ema,sync_buffers,empty_cache,nan_guard,precise_bn,switch_recipe,profiler,early_stop,visualization]",
    f"hooks.switch_recipe.schedule={SCHEDULE}",
    "hooks.ema.momentum=0.05",
    "hooks.ema.evaluate_on_origin=true",
    "hooks.checkpoint.save_best=[val/top1,val/top1_origin]",
    "hooks.precise_bn.interval=2",
    "hooks.empty_cache.after_iter=true",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers.copy()
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()


def run(folder: str, *arguments: str) -> Path:
    assert main([f"hydra.run.dir={folder}", *SMALL, *arguments]) == 0
    return Path(folder)


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.pth", weights_only=True)  # type: ignore[no-any-return]


def scalars(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "vis_data" / "scalars.jsonl").read_text().splitlines()]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right or left != left)


def test_all_hooks_at_once_resume_exactly_and_test_the_average(tmp_path: Path) -> None:
    whole = run("whole", *ALL, "hooks.checkpoint.max_keep_ckpts=-1")
    part = run("part", *ALL, "hooks.checkpoint.max_keep_ckpts=-1", f"resume={whole}/checkpoints/epoch_1.pth")
    for epoch in (2, 3, 4):
        left, right = checkpoint(whole, f"epoch_{epoch}"), checkpoint(part, f"epoch_{epoch}")
        for key in ("model", "optimizer", "progress"):
            assert same(left[key], right[key]), (epoch, key)
        for hook in ("ema", "precise_bn", "nan_guard", "early_stop"):
            assert same(left["hooks"][hook], right["hooks"][hook]), (epoch, hook)
    assert not same(left["model"], left["hooks"]["ema"]["average"])
    assert list((whole / "profile").glob("*.pt.trace.json"))

    validated = [row for row in scalars(whole) if "val/loss" in row]
    assert {"val/top1_origin", "val/loss_origin"} <= validated[-1].keys()
    assert validated[-1]["val/loss"] != validated[-1]["val/loss_origin"]
    tested = run("tested", "mode=test", f"load_from={whole}/checkpoints/epoch_4.pth")
    found = next(row for row in scalars(tested) if "test/loss" in row)
    assert found["test/loss"] == pytest.approx(validated[-1]["val/loss"], abs=1e-6)


def test_hooks_that_only_look_leave_the_weights_bit_identical() -> None:
    plain = run("plain")
    looked = run(
        "looked",
        "hooks=[default,ema,sync_buffers,empty_cache,nan_guard,profiler,visualization]",
        "hooks.ema.evaluate_on_origin=true",
        "hooks.nan_guard.interval=1",
    )
    assert same(checkpoint(plain, "epoch_4")["model"], checkpoint(looked, "epoch_4")["model"])
    assert same(checkpoint(plain, "epoch_4")["optimizer"], checkpoint(looked, "epoch_4")["optimizer"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["model.num_classes=7"],
            64,
            r"the model has 7 outputs, but the data set has 10 classes.*model.num_classes=10",
        ),
        (["model.in_channels=3"], 64, r"takes images of 3 channel.*yields 1 .*model.in_channels=1"),
        (["hooks=[default,nan_guard]", "optim=sgd", "optim.lr=1e25"], 65, r"step \d.*not finite.*last good checkpoint"),
        (["hooks=[default,switch_recipe]", "hooks.switch_recipe.schedule=[{epoch: 1, augment: [flop]}]"], 64, "flop"),
    ],
)
def test_what_stops_a_run(arguments: list[str], code: int, message: str) -> None:
    try:
        run("stopped", *arguments)
    except RunError as error:  # before the job
        found, text = error.exit_code, str(error)
    except SystemExit as left:
        found, text = left.code, Path("stopped/app.log").read_text()  # type: ignore[assignment]
    assert found == code
    assert re.search(message, text)
    assert "Traceback" not in text
    assert not list(Path("stopped").glob("checkpoints/*.pth"))


def test_rollback_through_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step, the first time it is done, leaves NaN weights behind."""
    import app.engine.loop

    original = app.engine.loop.make_train_step

    def spoiled(*arguments: Any) -> Any:
        step, state = original(*arguments), arguments[0].state

        def train_step(*values: Any) -> Any:
            info = step(*values)
            if state.progress.step == 6 and not spoiled.done:  # type: ignore[attr-defined]
                spoiled.done = True  # type: ignore[attr-defined]
                next(state.model.parameters()).data.fill_(float("nan"))
            return info

        return train_step

    spoiled.done = False  # type: ignore[attr-defined]
    hooks = ["hooks=[default,nan_guard]", "hooks.nan_guard.policy=rollback", "hooks.nan_guard.interval=1"]
    with monkeypatch.context() as patch:
        patch.setattr(app.engine.loop, "make_train_step", spoiled)
        rolled = run("rolled", *hooks, "hooks.checkpoint.async_save=false")
    assert spoiled.done  # type: ignore[attr-defined]
    assert checkpoint(rolled, "epoch_4")["hooks"]["nan_guard"]["rollbacks"] == 1
    steps = [row["step"] for row in scalars(rolled)]
    assert steps == sorted(steps)
    assert same(checkpoint(rolled, "epoch_4")["model"], checkpoint(run("plain"), "epoch_4")["model"])
