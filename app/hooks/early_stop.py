"""Stopping when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from app.config.schema.hooks import EarlyStopConf
from app.core.hook import Hook
from app.core.state import Run
from app.metrics.names import resolve, resolve_rule


class EarlyStop(EarlyStopConf, Hook):
    """Decides after each validation; the checkpoint hook saves what is left at the next commit.

    A run that it ended does not go on when it is resumed, unless the settings now say so.
    """

    in_test = False

    def __post_init__(self) -> None:
        self.best: float | None = None
        self.waited = 0
        self.latest: float | None = None

    def attach(self, run: Run) -> None:
        self.run = run
        self.monitor = resolve(self.monitor, run.monitored, "hooks.early_stop.monitor")
        self.rule = resolve_rule(self.monitor, run.monitored, self.rule, "hooks.early_stop.rule")

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        self.latest = value = metrics[self.monitor]
        if self._is_better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if (reason := self._reason(value)) is not None:
            run.stop(f"early stop: {reason}")

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best, "waited": self.waited, "latest": self.latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["monitor"] != self.monitor:
            return  # counts anew
        self.best, self.waited, self.latest = state["best"], state["waited"], state["latest"]
        if self.latest is not None and (reason := self._reason(self.latest)) is not None:
            self.run.stop(f"early stop: {reason}; hooks.early_stop=null goes on")

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.rule == "greater" else self.best - value
        return gain > self.min_delta

    def _reason(self, value: float) -> str | None:
        name = self.monitor
        if self.check_finite and not math.isfinite(value):
            return f"{name} is {value}"
        if self.threshold is not None:
            reached = value >= self.threshold if self.rule == "greater" else value <= self.threshold
            if reached:
                return f"{name} = {value:g} reached {self.threshold:g}"
        if self.waited > 0 and self.waited >= self.patience:
            best = "" if self.best is None else f" on {self.best:g}"
            return f"{name} has not improved{best} in {self.waited} validation(s)"
        return None
