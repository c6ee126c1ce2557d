"""The promises that everything else rests on: exact resume, and hooks and saving that disturb nothing."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import RunApp, digest, scalars

from app.checkpoint import contents
from app.core.hook import Hook
from app.core.state import Run, StepInfo

RECIPE = (
    "data.limit_train=100",
    "data.limit_val=40",
    "data.batch_size=16",
    "data.augment=[crop,flip,erase]",
    "train.accumulate=2",
    "train.clip_norm=1",
    "train.max_epochs=3",
    "model.dropout=0.3",
    "model.width=4",
    "hooks=[default,ema]",
    "hooks.ema.momentum=0.1",
    "hooks.logger.interval=2",
    "logging.custom=[{source: loss, window: epoch, name: epoch_loss}]",
    "randomness.seed=3",
)
SAVE_EVERY_STEP = ("hooks.checkpoint.by_epoch=false", "hooks.checkpoint.max_keep_ckpts=-1")
STEPS = 12


class Drawing(Hook):
    """Draws random numbers wherever it can."""

    def draw(self, *args: Any) -> None:
        torch.rand(7), np.random.rand(3), random.random()
        torch.manual_seed(1)

    attach = epoch_start = eval_end = epoch_end = commit = draw  # type: ignore[assignment]

    def step_end(self, run: Run, step: StepInfo) -> None:
        self.draw()


def final(folder: Path, name: str = f"iter_{STEPS}") -> dict[str, Any]:
    state = contents.load(folder / "checkpoints" / f"{name}.pth")
    return {key: state[key] for key in ("model", "optimizer", "schedule", "progress", "seed")} | {
        "hooks": {
            name: {"windows": {k: v for k, v in hook["windows"].items() if "time" not in k}}
            if name == "logger"
            else hook
            for name, hook in state["hooks"].items()
            if name not in ("checkpoint", "drawing")
        }
    }


def test_resume_at_every_step_is_bit_identical(run_app: RunApp) -> None:
    whole = run_app("whole", *RECIPE, *SAVE_EVERY_STEP)
    expected, rows = digest(final(whole)), scalars(whole)
    for step in range(1, STEPS):
        source = whole / "checkpoints" / f"iter_{step}.pth"
        resumed = run_app(f"from_{step}", *RECIPE, *SAVE_EVERY_STEP, f"resume='{source}'")
        assert digest(final(resumed)) == expected, f"resumed at step {step}"
        assert scalars(resumed) == [row for row in rows if row["step"] > step], f"logged after step {step}"


def test_saving_and_drawing_hooks_change_no_bit(run_app: RunApp) -> None:
    last_only = ("hooks.checkpoint.interval=100", "hooks.checkpoint.save_best=null")
    plain = run_app("plain", *RECIPE, *last_only)
    saving = run_app("saving", *RECIPE, *SAVE_EVERY_STEP)
    drawing = run_app(
        "drawing",
        *RECIPE,
        *last_only,
        f"+hooks.drawing={{_target_: {Drawing.__module__}.Drawing}}",
        "trusted_packages=[test_exact]",
    )
    names = ("epoch_3", f"iter_{STEPS}", "epoch_3")
    weights = [
        digest(final(folder, name)["model"]) for folder, name in zip((plain, saving, drawing), names, strict=True)
    ]
    assert weights[0] == weights[1]
    assert weights[0] == weights[2]
    assert scalars(plain) == scalars(saving) == scalars(drawing)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loader_path_gives_the_same_bits_with_any_number_of_workers(run_app: RunApp, accumulate: int) -> None:
    recipe = (
        "data=fake", "data.size=50", "data.val_size=10", "data.image_size=12", "data.in_memory=false",
        "data.augment=[crop,color]", "data.batch_size=16", f"train.accumulate={accumulate}", "train.max_epochs=2",
        "model.width=4", "randomness.seed=5",
    )  # fmt: skip
    digests = {
        workers: digest(final(run_app(f"workers_{workers}", *recipe, f"data.num_workers={workers}"), "epoch_2"))
        for workers in (0, 1, 3)
    }
    assert len(set(digests.values())) == 1, digests


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_workers_give_the_same_bits_however_they_are_started(run_app: RunApp, start_method: str) -> None:
    recipe = (
        "data=fake", "data.size=40", "data.val_size=10", "data.image_size=12", "data.in_memory=false",
        "data.augment=[crop]", "data.batch_size=16", "train.max_epochs=1", "model.width=4", "randomness.seed=5",
        "data.num_workers=1",
    )  # fmt: skip
    forked = run_app("fork", *recipe)
    other = run_app(start_method, *recipe, f"env.mp.start_method={start_method}")
    assert digest(final(forked, "epoch_1")) == digest(final(other, "epoch_1"))
