"""The closed forms against torch's schedulers, plateau against torch's, and what a changed length does."""

import functools
import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from app.errors import ConfigError
from app.optim import schedule

STEPS, UNIT = 40, 4
CLOCK = {"total_steps": STEPS, "steps_per_unit": UNIT}


def torch_factors(make: Any, steps: int, per: int = 1) -> list[float]:
    """lr at each step of a scheduler stepped once per `per` steps, for a base lr of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for step in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % per == 0:
            scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedule.constant(**CLOCK), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (schedule.step(size=2, gamma=0.5, **CLOCK), lambda o: lr_scheduler.StepLR(o, 2 * UNIT, 0.5)),
        (
            schedule.multistep(milestones=[7.5, 3], gamma=0.3, **CLOCK),
            lambda o: lr_scheduler.MultiStepLR(o, [12, 30], 0.3),
        ),
        (schedule.cosine(**CLOCK), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (schedule.cosine(final=0.2, **CLOCK), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.2)),
        (schedule.poly(power=1.7, **CLOCK), lambda o: lr_scheduler.PolynomialLR(o, STEPS, 1.7)),
        (schedule.exponential(gamma=0.8, **CLOCK), lambda o: lr_scheduler.ExponentialLR(o, 0.8 ** (1 / UNIT))),
        (
            schedule.one_cycle(up=0.4, start_div=10, final_div=100, **CLOCK),
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, STEPS, pct_start=0.4, div_factor=10, final_div_factor=100),
        ),
    ],
    ids=["constant", "step", "multistep", "cosine", "cosine-final", "poly", "exponential", "one_cycle"],
)
def test_equals_torch(ours: schedule.Curve, theirs: Any) -> None:
    assert [ours.factor(step) for step in range(STEPS)] == pytest.approx(torch_factors(theirs, STEPS), abs=1e-12)


def test_poly_ends_at_final() -> None:
    curve = schedule.poly(power=2.0, final=0.25, **CLOCK)
    assert curve.factor(STEPS // 2) == pytest.approx(0.25 + 0.75 * 0.25)
    assert curve.factor(STEPS) == 0.25


def test_warmup_equals_torch_and_the_shape_begins_after_it() -> None:
    curve = schedule.cosine(warmup=2, warmup_factor=0.1, **CLOCK)
    warmup = torch_factors(lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 2 * UNIT), 2 * UNIT)
    shape = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - 2 * UNIT), STEPS - 2 * UNIT)
    assert [curve.factor(step) for step in range(STEPS)] == pytest.approx(warmup + shape, abs=1e-12)


def test_warmup_rises_to_where_the_shape_begins() -> None:
    curve = schedule.one_cycle(warmup=1, warmup_factor=0.0, start_div=20, **CLOCK)
    assert [curve.factor(step) for step in (0, 2, 4)] == pytest.approx([0.0, 0.025, 0.05])


def test_milestones_count_from_the_start_of_training() -> None:
    curve = schedule.multistep(milestones=[3], warmup=2, **CLOCK)
    assert [curve.factor(step) for step in (8, 11, 12)] == pytest.approx([1.0, 1.0, 0.1])


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "poly", "exponential", "one_cycle"])
def test_short_runs_and_steps_past_the_end_have_a_finite_factor(name: str) -> None:
    for total in (1, 2, 3):
        for warmup in (0, 5):
            curve = getattr(schedule, name)(warmup=warmup, total_steps=total, steps_per_unit=1)
            assert all(0 <= curve.factor(step) <= 1 for step in range(8))


def test_lengths_are_in_units_of_the_clock() -> None:
    epochs = schedule.step(size=1.5, total_steps=100, steps_per_unit=10)
    iterations = schedule.step(size=15, total_steps=100, steps_per_unit=1)
    assert [epochs.factor(step) for step in range(40)] == [iterations.factor(step) for step in range(40)]
    assert epochs.factor(15) == pytest.approx(0.1)


def plateau(**settings: Any) -> schedule.Plateau:
    return schedule.Plateau(monitor="val/loss", **({"rule": "less"} | settings), **CLOCK)


def test_plateau_equals_torch() -> None:
    values = [1.0, 0.9, 0.95, 0.89, 0.895, 0.9, 0.5, 0.6, 0.7, math.nan, 0.8, 0.4, 0.41, 0.42, 0.43, 0.44]
    ours = plateau(gamma=0.5, patience=1, min_delta=0.02)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.02, threshold_mode="abs", eps=0.0
    )
    seen = []
    for value in values:
        ours.eval_end({"val/loss": value, "val/top1": 0.0})
        theirs.step(value)
        seen.append(ours.factor(9))
        assert seen[-1] == optimizer.param_groups[0]["lr"]
    assert seen[-1] < 0.2


def test_plateau_maximises_and_stops_at_final() -> None:
    curve = plateau(rule="greater", gamma=0.1, patience=0, final=0.05)
    for value in (0.5, 0.6, 0.4, 0.4):
        curve.eval_end({"val/loss": value})
    assert curve.factor(0) == 0.05


def test_plateau_state_goes_on_and_follows_a_changed_gamma() -> None:
    first = plateau(patience=1)
    for value in (1.0, 2.0, 2.0, 2.0):
        first.eval_end({"val/loss": value})
    assert first.factor(0) == pytest.approx(0.1)
    second = plateau(patience=1, gamma=0.5)
    second.load_state_dict(first.state_dict())
    assert second.factor(0) == 0.5
    second.eval_end({"val/loss": 2.0})
    assert second.factor(0) == 0.25
    second.eval_end({"other": 0.0})
    assert second.bad == 0


def test_plateau_needs_a_rule() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.rule must be greater or less"):
        plateau(rule=None)


def torch_schedule(target: Any, warmup: float = 0.0, **arguments: Any) -> schedule.TorchSchedule:
    return schedule.TorchSchedule(functools.partial(target, **arguments), warmup=warmup, **CLOCK)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 3}),
        (lr_scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3}),
        (lr_scheduler.OneCycleLR, {"max_lr": 1.0, "total_steps": 11}),
        (lr_scheduler.LambdaLR, {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ],
)
def test_any_torch_scheduler_stepped_once_per_epoch_from_any_step(target: Any, arguments: dict[str, Any]) -> None:
    expected = torch_factors(functools.partial(target, **arguments), STEPS, per=UNIT)
    curve = torch_schedule(target, **arguments)
    assert [curve.factor(step) for step in range(STEPS)] == expected
    for step in (29, 5, 5, 38, 0):  # resumed at any step, and rolled back
        assert torch_schedule(target, **arguments).factor(step) == expected[step]
        assert curve.factor(step) == expected[step]


def test_torch_scheduler_begins_after_the_warmup() -> None:
    curve = torch_schedule(lr_scheduler.StepLR, warmup=2, step_size=1, gamma=0.5)
    assert [curve.factor(step) for step in (4, 8, 11, 12)] == pytest.approx([0.505, 1.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lr_scheduler.ReduceLROnPlateau, "use schedule=plateau"),
        (functools.partial(lr_scheduler.StepLR, stepsize=3), "stepsize"),
        (lambda optimizer: 3, "must make a torch.optim.lr_scheduler.LRScheduler, got a int"),
    ],
)
def test_what_is_no_scheduler_of_the_step_is_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule.TorchSchedule(scheduler, **CLOCK)
