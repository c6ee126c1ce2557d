"""Each hook's interval against each moment of a save, through the real command, with kills in between.

All intervals are coprime, so that saves fall everywhere between two looks, lines, validations and drawings.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import digest, scalars

from app import cli
from app.checkpoint import contents
from app.core.hook import Hook
from app.core.state import Run, StepInfo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

STEPS = 45
RECIPE = (
    "trusted_packages=[test_intervals]", "data=fake", "data.size=88", "data.val_size=8", "data.image_size=8",
    "data.batch_size=8", "data.augment=[crop,flip]", "model.width=4", "model.dropout=0.3", "randomness.seed=3",
    "optim.lr=0.01", "schedule=constant", "train.by_epoch=false", f"train.max_iters={STEPS}", "train.val_interval=4",
    "hooks.checkpoint.interval=1000", "hooks.checkpoint.save_best=null", "hooks.checkpoint.max_keep_ckpts=-1",
    "+hooks.faults._target_=test_intervals.Faults",
)  # fmt: skip
ALL = (
    "hooks=[default,ema,sync_buffers,empty_cache,nan_guard,precise_bn,switch_recipe,early_stop,visualization]",
    "hooks.ema.momentum=0.05", "hooks.ema.evaluate_on_origin=true", "hooks.ema.begin_iter=9",
    "hooks.logger.interval=3",
    "logging.custom=[{source: loss, window: epoch, name: a}, {source: loss, window: 8, name: b}]",
    "hooks.nan_guard.interval=5", "hooks.nan_guard.policy=skip", "hooks.nan_guard.max_bad=2",
    "hooks.precise_bn.interval=2", "hooks.precise_bn.num_samples=16", "hooks.early_stop.patience=99",
    "hooks.visualization.enable=true", "hooks.visualization.interval=3", "hooks.visualization.max_images=2",
    "hooks.empty_cache.after_iter=true", "hooks.switch_recipe.schedule=[{epoch: 2, augment: [flip]}]",
)  # fmt: skip
SAVES = {
    "interval": (["hooks.checkpoint.interval=7"], []),
    "every_minutes": (["hooks.checkpoint.every_minutes=1e-6"], []),
    "best": (["hooks.checkpoint.save_best=val/loss"], []),
    "last": ([], ["train.max_iters=24"]),
    "early stop": (["hooks.early_stop.monitor=val/loss"], ["hooks.early_stop.threshold=100"]),
    "signal": ([], []),
}
"""Settings of the whole run, and those of its first part only, by what makes the first part save."""


class Faults(Hook):
    """Spoil the loss at the steps of $SPOIL; send this process the signal $SIGNAL as step $AT ends."""

    priority = 20

    def attach(self, run: Run) -> None:
        spoil = {int(step) for step in os.environ.get("SPOIL", "").split()}
        sound = run.loss

        def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            value = sound(logits, targets)
            in_training = run.state.model.training
            return value * float("nan") if in_training and run.state.progress.step + 1 in spoil else value

        run.loss = loss

    def step_end(self, run: Run, step: StepInfo) -> None:
        if run.state.progress.step == int(os.environ.get("AT", "0")):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))


Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run the command in a process of its own, forked from here; its exit status (minus the signal that killed it)."""

    def run(name: str, *settings: str, **environment: str) -> int:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.environ.update(environment)
                sys.stdout = sys.stderr = open(tmp_path / f"{name}.txt", "a")  # noqa: SIM115 - until the process ends
                sys.argv = ["app", f"hydra.run.dir={tmp_path / name}", f"output_root={tmp_path}", *RECIPE, *settings]
                code = cli.entry()
            finally:
                sys.stdout.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


def final(folder: Path) -> dict[str, Any]:
    """All state of the last checkpoint but the clock's and the checkpoint hook's own."""
    state = contents.load(folder / "checkpoints" / f"iter_{STEPS}.pth")
    hooks = {name: dict(hook) for name, hook in state["hooks"].items() if name not in ("checkpoint", "faults")}
    hooks["logger"] = {name: window for name, window in hooks["logger"]["windows"].items() if "time" not in name}
    return {key: state[key] for key in ("model", "optimizer", "progress")} | {"hooks": hooks}


@pytest.mark.parametrize("moment", SAVES)
def test_every_hook_goes_on_from_every_save(moment: str, start: Start, tmp_path: Path) -> None:
    settings, first = SAVES[moment]
    spoil = "8 9 10 13 16 30 31"
    assert start("whole", *ALL, *settings, SPOIL=spoil) == 0
    interrupt = {"SIGNAL": str(signal.SIGTERM if moment == "signal" else signal.SIGKILL), "AT": "18"}
    if first:
        assert start("part", *ALL, *settings, *first, SPOIL=spoil) == 0
    else:
        code = 128 + signal.SIGTERM if moment == "signal" else -signal.SIGKILL
        assert start("part", *ALL, *settings, SPOIL=spoil, **interrupt) == code
    assert list((tmp_path / "part" / "checkpoints").glob("*.pth"))
    undo = [setting.partition("=")[0] + "=null" for setting in first if "threshold" in setting]
    assert start("part", *ALL, *settings, "resume=true", *undo, SPOIL=spoil) == 0
    whole, part = final(tmp_path / "whole"), final(tmp_path / "part")
    for key, value in whole.items():
        assert digest(part[key]) == digest(value), key
    assert scalars(tmp_path / "part") == scalars(tmp_path / "whole")


GUARDED = ("hooks=[default,ema,nan_guard]", "hooks.ema.momentum=0.05", "hooks.checkpoint.interval=7")
POLICIES = {
    "skip, too many in a row": ("skip", 10, range(11, 21), 65),
    "skip, never too many": ("skip", 10, [3, 9, *range(12, 20), 26], 0),
    "rollback before the save": ("rollback", 10, [12, 24], 0),
    "rollback after the save": ("rollback", 10, [9, 30], 0),
    "stop": ("stop", 10, [12], 65),
}


@pytest.mark.parametrize("case", POLICIES)
def test_nan_guard_under_random_kills(case: str, start: Start, tmp_path: Path) -> None:
    policy, interval, steps, code = POLICIES[case]
    settings = [*GUARDED, f"hooks.nan_guard.policy={policy}", f"hooks.nan_guard.interval={interval}"]
    spoil = " ".join(map(str, steps))
    assert start("whole", *settings, SPOIL=spoil) == code, (tmp_path / "whole.txt").read_text()[-3000:]
    kills = sorted(random.Random(case).sample(range(2, STEPS), 4))
    for at in kills:
        status = start("part", *settings, "resume=true", SPOIL=spoil, SIGNAL=str(signal.SIGKILL), AT=str(at))
        assert status in (-signal.SIGKILL, code)
    status = start("part", *settings, "resume=true", SPOIL=spoil)
    assert status == code, f"killed at {kills}: {(tmp_path / 'part.txt').read_text()[-3000:]}"
    if code == 0:
        whole, part = final(tmp_path / "whole"), final(tmp_path / "part")
        for key in ("model", "optimizer", "progress"):
            assert digest(part[key]) == digest(whole[key]), f"{key}, killed at {kills}"
        assert digest(part["hooks"]["ema"]) == digest(whole["hooks"]["ema"])


@pytest.mark.parametrize("by", ["line", "save"])
def test_a_loss_that_is_nan_from_the_start_ends_the_run(by: str, start: Start, tmp_path: Path) -> None:
    """At the first line that reads it, or before the first save, whichever comes first: 65, and never as the best."""
    line = 4 if by == "line" else 40
    spoil = " ".join(map(str, range(1, 46)))
    settings = [f"hooks.logger.interval={line}", "hooks.checkpoint.interval=5", "hooks.checkpoint.save_best=val/loss"]
    assert start("run", *settings, "train.val_interval=3", SPOIL=spoil) == 65
    text = (tmp_path / "run.txt").read_text()
    said = r"step 1 \(epoch 1, batch 1\): loss not finite, loss nan, lr 0\.0001, samples \d+, \d+"
    assert re.search(said, text), text
    assert "optim.lr" in text
    assert "resume=true" not in text
    assert "Traceback" not in text
    assert f"iter {line}/45" not in text
    assert "iter 6/45" not in text
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pth"))


def test_a_metric_that_is_nan_is_never_the_best(start: Start, tmp_path: Path) -> None:
    settings = [
        "+hooks=nan_guard",
        "hooks.nan_guard.max_bad=99",
        "metrics.monitor=loss",
        "hooks.checkpoint.interval=-1",
    ]
    assert start("run", *settings, SPOIL=" ".join(map(str, range(1, 46)))) == 0
    text = (tmp_path / "run.txt").read_text()
    assert "val/loss nan" in text
    assert "best" not in text
