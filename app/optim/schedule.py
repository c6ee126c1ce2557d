"""Learning-rate schedules: the factor on the base rates as a function of the step.

Nothing is saved that the step gives back, so a changed rate, length or shape does what it says after a resume. Lengths
are in units of the clock (epochs or iterations); `steps_per_unit` makes steps of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from app.errors import ConfigError

Shape = Callable[[int], float]
"""Step, counted from the end of the warm-up -> factor."""


class Curve:
    """A shape after a linear warm-up, which rises from `warmup_factor` times to once the shape's first value."""

    def __init__(self, shape: Shape, warmup_steps: int = 0, warmup_factor: float = 0.0) -> None:
        self.shape = shape
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    def factor(self, step: int) -> float:
        """The factor on the base learning rates at `step`, the number of steps done before."""
        after = step - self.warmup_steps
        if after >= 0:
            return self.shape(after)
        progress = step / self.warmup_steps
        return (self.warmup_factor + (1 - self.warmup_factor) * progress) * self.shape(0)


def constant(warmup: float = 0.0, warmup_factor: float = 0.01, *, total_steps: int, steps_per_unit: int) -> Curve:
    """1."""
    return Curve(lambda step: 1.0, _steps(warmup, steps_per_unit), warmup_factor)


def step(
    warmup: float = 0.0,
    warmup_factor: float = 0.01,
    size: float = 30.0,
    gamma: float = 0.1,
    *,
    total_steps: int,
    steps_per_unit: int,
) -> Curve:
    """gamma ** (stairs of `size` since the warm-up)."""
    stair = max(_steps(size, steps_per_unit), 1)
    return Curve(lambda step: gamma ** (step // stair), _steps(warmup, steps_per_unit), warmup_factor)


def multistep(
    milestones: Sequence[float],
    warmup: float = 0.0,
    warmup_factor: float = 0.01,
    gamma: float = 0.1,
    *,
    total_steps: int,
    steps_per_unit: int,
) -> Curve:
    """gamma ** (milestones passed); milestones count from the start of training, warm-up included."""
    warmup_steps = _steps(warmup, steps_per_unit)
    marks = sorted(_steps(milestone, steps_per_unit) for milestone in milestones)
    return Curve(lambda step: gamma ** bisect_right(marks, step + warmup_steps), warmup_steps, warmup_factor)


def cosine(
    warmup: float = 0.0, warmup_factor: float = 0.01, final: float = 0.0, *, total_steps: int, steps_per_unit: int
) -> Curve:
    """Half a cosine from 1 to `final` (SGDR, arXiv:1608.03983, without restarts)."""
    warmup_steps = _steps(warmup, steps_per_unit)
    span = max(total_steps - warmup_steps, 1)

    def shape(step: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * min(step / span, 1.0))) / 2

    return Curve(shape, warmup_steps, warmup_factor)


def poly(
    warmup: float = 0.0,
    warmup_factor: float = 0.01,
    power: float = 1.0,
    final: float = 0.0,
    *,
    total_steps: int,
    steps_per_unit: int,
) -> Curve:
    """(1 - t) ** power from 1 to `final`, with t from 0 to 1."""
    warmup_steps = _steps(warmup, steps_per_unit)
    span = max(total_steps - warmup_steps, 1)

    def shape(step: int) -> float:
        return final + (1 - final) * math.pow(1 - min(step / span, 1.0), power)

    return Curve(shape, warmup_steps, warmup_factor)


def exponential(
    warmup: float = 0.0, warmup_factor: float = 0.01, gamma: float = 0.95, *, total_steps: int, steps_per_unit: int
) -> Curve:
    """gamma ** (epochs or iterations since the warm-up), smoothly in between."""
    return Curve(lambda step: gamma ** (step / steps_per_unit), _steps(warmup, steps_per_unit), warmup_factor)


def one_cycle(
    warmup: float = 0.0,
    warmup_factor: float = 0.01,
    up: float = 0.3,
    start_div: float = 25.0,
    final_div: float = 1e4,
    *,
    total_steps: int,
    steps_per_unit: int,
) -> Curve:
    """From 1 / start_div up to 1, then down to 1 / start_div / final_div, along cosines (arXiv:1708.07120).

    The steps of the top and of the end are those of torch's OneCycleLR.
    """
    warmup_steps = _steps(warmup, steps_per_unit)
    last = max(total_steps - warmup_steps - 1, 1)
    top = up * (last + 1) - 1
    start, end = 1 / start_div, 1 / start_div / final_div

    def shape(step: int) -> float:
        if step <= top:
            return _cosine_between(start, 1.0, step / top if top else 1.0)
        return _cosine_between(1.0, end, min((step - max(top, 0.0)) / (last - max(top, 0.0)), 1.0))

    return Curve(shape, warmup_steps, warmup_factor)


class Plateau(Curve):
    """Multiplied by `gamma`, down to `final`, when `monitor` has not improved for more than `patience` evaluations.

    torch's ReduceLROnPlateau with an absolute threshold; a metric that is not finite is no improvement. Call
    `eval_end` after each evaluation.

    Raises:
        ConfigError: `rule` is neither `greater` nor `less`.
    """

    def __init__(
        self,
        warmup: float = 0.0,
        warmup_factor: float = 0.01,
        monitor: str = "auto",
        rule: str | None = None,
        gamma: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        final: float = 0.0,
        *,
        total_steps: int,
        steps_per_unit: int,
    ) -> None:
        super().__init__(self._level, _steps(warmup, steps_per_unit), warmup_factor)
        if rule not in ("greater", "less"):
            raise ConfigError(f"schedule.rule must be greater or less for schedule.monitor={monitor}, got {rule}")
        self.monitor, self.sign = monitor, 1 if rule == "greater" else -1
        self.gamma, self.patience, self.min_delta, self.final = gamma, patience, min_delta, final
        self.best: float | None = None
        self.bad = 0
        """Evaluations since the last improvement or reduction."""
        self.reductions = 0

    def eval_end(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one evaluation; those without `monitor` change nothing."""
        if self.monitor not in metrics:
            return
        value = metrics[self.monitor]
        if math.isfinite(value) and (self.best is None or self.sign * (value - self.best) > self.min_delta):
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.reductions, self.bad = self.reductions + 1, 0

    def _level(self, step: int) -> float:
        return max(self.gamma**self.reductions, self.final)

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best, "bad": self.bad, "reductions": self.reductions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reductions = state["reductions"]
        if state["monitor"] == self.monitor:
            self.best, self.bad = state["best"], state["bad"]


class TorchSchedule(Curve):
    """Any scheduler of torch.optim.lr_scheduler, stepped once per epoch (iteration): its lr for a base lr of 1.

    Args:
        scheduler: makes it from an optimizer, as functools.partial(StepLR, step_size=3) does.

    It is replayed from the start to wherever it is asked for, so it needs no saving and follows changed arguments (some
    10 µs for each epoch or iteration, once).

    Raises:
        ConfigError: `scheduler` makes no LRScheduler, or one that waits for a metric.
    """

    def __init__(
        self,
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        warmup: float = 0.0,
        warmup_factor: float = 0.01,
        *,
        total_steps: int,
        steps_per_unit: int,
    ) -> None:
        super().__init__(self._level, _steps(warmup, steps_per_unit), warmup_factor)
        self.make, self.steps_per_unit = scheduler, steps_per_unit
        self._start()

    def _start(self) -> None:
        self.unit = 0
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        try:
            self.scheduler = self.make(self.optimizer)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schedule.scheduler: {error}") from error
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError("schedule.scheduler: ReduceLROnPlateau is no function of the step; use schedule=plateau")
        if not isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            raise ConfigError(
                f"schedule.scheduler._target_ must make a torch.optim.lr_scheduler.LRScheduler, "
                f"got a {type(self.scheduler).__name__}"
            )

    def _level(self, step: int) -> float:
        unit = step // self.steps_per_unit
        if unit < self.unit:
            self._start()
        while self.unit < unit:
            self.optimizer.step()  # torch warns when a scheduler steps first
            self.scheduler.step()
            self.unit += 1
        return float(self.optimizer.param_groups[0]["lr"])


def _steps(length: float, steps_per_unit: int) -> int:
    return round(length * steps_per_unit)


def _cosine_between(first: float, last: float, t: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * t)) / 2
