from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, make, tiny_run, train
from torch import nn

from app.config.schema.hooks import EMAConf, NanGuardConf
from app.core.hook import Hook
from app.core.state import Run, StepInfo
from app.errors import DataError

Spoil = Callable[[torch.Tensor], torch.Tensor]


def spoiled_run(folder: Path, steps: set[int], times: int = 1000, **fields: Any) -> Run:
    """A run whose loss is NaN in these steps (from 1 on), but only the first `times` times a step is done."""
    run = tiny_run(folder, **fields)
    seen: dict[int, int] = {}

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(logits, targets)
        step = run.state.progress.step + 1
        seen[step] = seen.get(step, 0) + 1
        return value * float("nan") if step in steps and seen[step] <= times else value

    run.loss = loss
    return run


class Saved(Hook):
    """Keeps a copy of the state at the end of each epoch, and gives the run a way back to the newest."""

    priority = 90

    def attach(self, run: Run) -> None:
        self.kept: tuple[Any, ...] | None = None

    def commit(self, run: Run) -> None:
        if run.state.progress.batch == 0:
            hooks = {name: copy.deepcopy(hook.state_dict()) for name, hook in run.hooks.items()}
            state = run.state
            self.kept = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict(), state.progress)), hooks

    def restore(self, run: Run) -> bool:
        if self.kept is None:
            return False
        (model, optimizer, progress), hooks = copy.deepcopy(self.kept)
        run.state.model.load_state_dict(model)
        run.state.optimizer.load_state_dict(optimizer)
        for name in ("epoch", "step", "batch", "samples", "evaluated"):
            setattr(run.state.progress, name, getattr(progress, name))
        for name, hook in run.hooks.items():
            hook.load_state_dict(hooks[name])
        return True


def test_a_sound_run_is_left_alone(tmp_path: Path) -> None:
    plain = tiny_run(tmp_path)
    train(plain, {})
    for policy in ("stop", "rollback", "skip"):
        run = tiny_run(tmp_path)
        train(run, {"nan_guard": make(NanGuardConf(policy=policy, interval=2))})
        for left, right in zip(plain.state.model.parameters(), run.state.model.parameters(), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize(("interval", "found_at"), [(1, 5), (2, 6), (4, 6), (100, 6)])
def test_stop_names_the_step_and_what_is_known(interval: int, found_at: int, tmp_path: Path) -> None:
    """Epochs of three steps; the look at an epoch's end comes before its evaluation."""
    run = spoiled_run(tmp_path, {5})
    with pytest.raises(DataError) as caught:
        train(run, {"nan_guard": make(NanGuardConf(interval=interval))})
    assert caught.value.exit_code == 65
    assert run.state.progress.step == found_at
    assert run.state.progress.evaluated == 3
    message = str(caught.value)
    assert "step 5 (epoch 2, batch 2): loss or gradients not finite, loss nan" in message
    assert "lr 0.1" in message
    assert "last good checkpoint: none" in message
    samples = [step.micros[0].indices.tolist() for step in run.data.train(1, 0)][1]
    assert re.search(r"samples ([\d, ]+), last", message).group(1) == ", ".join(map(str, samples))  # type: ignore[union-attr]


def test_stop_after_max_bad_looks_in_a_row(tmp_path: Path) -> None:
    class Mend(Hook):
        """Puts sound weights back, as if one batch had been bad and no more."""

        def attach(self, run: Run) -> None:
            self.sound = copy.deepcopy(run.state.model.state_dict())

        def step_end(self, run: Run, step: StepInfo) -> None:
            run.state.model.load_state_dict(self.sound)
            run.state.optimizer.state.clear()

    run = spoiled_run(tmp_path, {2, 5, 6})
    with pytest.raises(DataError, match="step 6"):
        train(run, {"nan_guard": make(NanGuardConf(interval=1, max_bad=2)), "mend": Mend()})


def test_weights_that_are_not_finite_count_though_the_loss_is(tmp_path: Path) -> None:
    class Break(Hook):
        def step_end(self, run: Run, step: StepInfo) -> None:
            if run.state.progress.step == 2:
                run.state.model[6].bias.data[0] = float("inf")  # type: ignore[index, union-attr]

    with pytest.raises(DataError, match=r"step 2 .*: weights not finite, loss \d"):
        train(tiny_run(tmp_path), {"break": Break(), "nan_guard": make(NanGuardConf(interval=1))})


def test_a_mask_of_infinities_is_fine(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.state.model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    train(run, {"nan_guard": make(NanGuardConf(interval=1))})


def test_skip_leaves_the_step_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = spoiled_run(tmp_path, {2, 5})
    weights = Recorder("step_end", lambda run: copy.deepcopy(dict(run.state.model.named_parameters())))
    guard = make(NanGuardConf(policy="skip", interval=3))
    with caplog.at_level(logging.WARNING):
        train(run, {"nan_guard": guard, "weights": weights})
    assert run.state.progress.step == 9
    for step in range(1, 9):
        same = all(torch.equal(weights.seen[step][name], weights.seen[step - 1][name]) for name in weights.seen[0])
        assert same is (step + 1 in {2, 5})
    assert guard.state_dict()["skipped"] == 2
    assert "step 3: skipped 1 of the last 3 steps, whose gradients were not finite (1 so far)" in caplog.text


def test_skip_gives_up_when_nothing_is_applied_any_more(tmp_path: Path) -> None:
    run = spoiled_run(tmp_path, set(range(3, 99)))
    with pytest.raises(DataError, match="step 5 "):
        train(run, {"nan_guard": make(NanGuardConf(policy="skip", interval=2, max_bad=2))})
    assert run.state.progress.step == 6


def test_rollback_goes_on_from_the_checkpoint_without_the_bad_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = spoiled_run(tmp_path, {5})
    steps = Recorder("step_end", lambda run: run.state.progress.step)
    hooks = {"nan_guard": make(NanGuardConf(policy="rollback")), "ema": make(EMAConf()), "saved": Saved()}
    with caplog.at_level(logging.WARNING):
        train(run, {**hooks, "steps": steps})
    assert steps.seen == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9]
    assert "step 5 (epoch 2, batch 2)" in caplog.text
    assert "rolled back to step 3 (rollback 1 of 3)" in caplog.text
    assert hooks["nan_guard"].state_dict()["rollbacks"] == 1
    skipping = spoiled_run(tmp_path, {5})
    train(skipping, {"nan_guard": make(NanGuardConf(policy="skip")), "ema": make(EMAConf())})
    for left, right in zip(run.state.model.parameters(), skipping.state.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_rollback_without_a_checkpoint(tmp_path: Path) -> None:
    run = spoiled_run(tmp_path, {2})
    with pytest.raises(DataError, match=r"step 2 .*; there is no checkpoint to roll back to"):
        train(run, {"nan_guard": make(NanGuardConf(policy="rollback")), "saved": Saved()})


def test_rollback_gives_up_after_max_rollbacks(tmp_path: Path) -> None:
    class Break(Hook):
        """Weights that blow up whatever is skipped."""

        def step_end(self, run: Run, step: StepInfo) -> None:
            if run.state.progress.step == 5:
                run.state.model[6].bias.data[0] = float("nan")  # type: ignore[index, union-attr]

    run = tiny_run(tmp_path)
    steps = Recorder("step_end", lambda run: run.state.progress.step)
    guard = make(NanGuardConf(policy="rollback", max_rollbacks=2, interval=1))
    with pytest.raises(DataError, match=r"weights not finite.*; gave up after 2 rollback\(s\)"):
        train(run, {"break": Break(), "nan_guard": guard, "saved": Saved(), "steps": steps})
    assert steps.seen == [1, 2, 3, 4, 5, 4, 5, 4, 5]


def test_skipping_goes_on_after_a_resume(tmp_path: Path) -> None:
    guard = make(NanGuardConf(policy="rollback"))
    run = tiny_run(tmp_path)
    guard.attach(run)
    assert not run.skip_nonfinite
    guard.load_state_dict({"bad_looks": 0, "rollbacks": 1, "skipped": 0, "skipped_in_a_row": 0})
    assert run.skip_nonfinite
    guard.load_state_dict({"bad_looks": 0, "rollbacks": 0, "skipped": 0, "skipped_in_a_row": 0})
    assert not run.skip_nonfinite


def test_overflow_under_a_scaler_is_the_scaler_s_business(tmp_path: Path) -> None:
    """float16 gradients overflow until the scale has come down; the loss stays finite throughout."""
    run = tiny_run(tmp_path)
    run.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    scales = Recorder("step_end", lambda run: run.state.scaler.get_scale())
    for parameter in run.state.model.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e3)
    train(run, {"nan_guard": make(NanGuardConf(policy="skip", interval=1)), "scales": scales})
    assert scales.seen[0] < 2.0**126
    assert run.hooks["nan_guard"].state_dict()["skipped"] == 0


def test_nan_in_a_buffer_counts_though_all_else_is_finite(tmp_path: Path) -> None:
    """Batch norm in training does not read its running statistics: the loss says nothing of them."""

    class Break(Hook):
        def step_end(self, run: Run, step: StepInfo) -> None:
            if step.step == 2:
                run.state.model[1].running_mean[0] = float("nan")  # type: ignore[index, union-attr, operator]

    with pytest.raises(DataError, match=r"step 2 .*: weights not finite, loss \d"):
        train(tiny_run(tmp_path), {"break": Break(), "nan_guard": make(NanGuardConf(interval=1))})
