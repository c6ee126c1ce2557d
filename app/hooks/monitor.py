"""The newest and the best value of the run's metric; hands each evaluation to a schedule that waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from app.core.hook import Hook
from app.core.state import Run
from app.metrics.names import resolve, resolve_rule
from app.optim.schedule import Plateau


class Monitor(Hook):
    """Always on: what the command returns, the summary names, and trackers show as the result."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.metric = self.rule = ""
        self.latest: dict[str, float] = {}
        self.best: float | None = None
        self.best_epoch = self.best_step = 0

    def attach(self, run: Run) -> None:
        self.metric = resolve("auto", run.monitored)
        self.rule = resolve_rule(self.metric, run.monitored)

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        self.latest = dict(metrics)
        if isinstance(run.schedule, Plateau):
            run.schedule.eval_end(metrics)
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        if self.best is None or (value > self.best if self.rule == "greater" else value < self.best):
            self.best = value
            self.best_epoch, self.best_step = run.state.progress.epoch, run.state.progress.step

    @property
    def summary(self) -> dict[str, float]:
        """The last metrics, and the best of the monitored one as `best/NAME`."""
        best = {} if self.best is None else {f"best/{self.metric.partition('/')[2]}": self.best}
        return {**self.latest, **best}

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "latest": self.latest,
            "best": self.best,
            "epoch": self.best_epoch,
            "step": self.best_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.latest = dict(state["latest"])
        if state["metric"] != self.metric:
            return  # the best of another metric
        self.best = state["best"]
        self.best_epoch, self.best_step = state["epoch"], state["step"]
