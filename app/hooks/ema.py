"""An average of the weights, and evaluation on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from app.config.schema.hooks import EMAConf
from app.core.hook import Hook
from app.core.parallel import like, local
from app.core.state import Run, StepInfo
from app.errors import CheckpointError

MOST_OF_THE_START = 0.05
"""An average that holds more than this of the weights it began with is not worth evaluating."""

logger = logging.getLogger(__name__)


class EMA(EMAConf, Hook):
    """Averages the weights after every step; the first averaged step copies them.

    `exponential` and `swa` give what torch.optim.swa_utils.AveragedModel gives; `annealing` is MMEngine's
    MomentumAnnealingEMA. Until `begin`, and for buffers that are not averaged, the average equals the weights, so
    nothing is copied until somebody asks for it.
    """

    in_test = False  # what is loaded then is the average

    def __post_init__(self) -> None:
        if self.decay is not None:
            self.momentum = 1 - self.decay
        self.updates = 0
        """Steps in the average; 0: it is the weights."""
        self.average: dict[str, torch.Tensor] = {}
        """By the names of the model's state_dict; empty while `updates` is 0."""
        self.buffers_behind = False
        self.origin: dict[str, float] = {}

    @property
    def evaluated_weights(self) -> str | None:
        return "average" if self.evaluate_on_ema else None

    def attach(self, run: Run) -> None:
        self.model = run.state.model
        left = (1 - self.momentum) ** run.total_steps
        if self.kind == "exponential" and left > MOST_OF_THE_START:
            logger.warning(
                "hooks.ema.momentum=%g is small for %d steps: at the end %.0f %% of the average are still the first "
                "weights; try hooks.ema.momentum=%.1g",
                self.momentum, run.total_steps, 100 * left, min(10 / run.total_steps, 0.5),
            )  # fmt: skip
        self.persistent = self.model.state_dict().keys()
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self.averaged = [name for name, parameter in parameters.items() if parameter.dtype.is_floating_point]
        self.sources = [parameters[name] for name in self.averaged]
        if self.update_buffers:
            buffers = self._buffers()
            self.averaged += [name for name, buffer in buffers.items() if buffer.dtype.is_floating_point]

    def step_end(self, run: Run, step: StepInfo) -> None:
        progress = run.state.progress
        if progress.epoch >= self.begin_epoch and progress.step > self.begin_iter:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights into the average."""
        if self.updates == 0:
            self.average = {name: tensor.detach().clone() for name, tensor in self._live().items()}
            self.targets = [local(self.average[name]) for name in self.averaged]
        else:
            torch._foreach_lerp_(self.targets, [local(source) for source in self._sources()], self.weight())
        self.updates += 1
        self.buffers_behind = True

    def weight(self) -> float:
        """The share of the next update."""
        if self.kind == "swa":
            return 1 / (self.updates + 1)
        if self.kind == "annealing":
            return max(self.momentum, self.gamma / (self.gamma + self.updates))
        return self.momentum

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        self.origin = {}
        if not self.evaluate_on_ema or self.updates == 0:
            yield
            return
        if self.evaluate_on_origin:
            self.origin = run.evaluate() or {}
            self.origin_seconds = run.evaluation_seconds
        with self.swapped():
            yield

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        if not (self.evaluate_on_ema and self.evaluate_on_origin):
            return
        if self.origin:
            run.evaluation_seconds += self.origin_seconds
        origin = self.origin or metrics.copy()
        metrics.update({f"{name}_origin": value for name, value in origin.items()})

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the average inside this context, and its own weights again after it, whatever happens.

        Values are copied, not pointers: FSDP and captured CUDA graphs keep their own references to the storage.
        """
        live, average = self._live(), self._current()
        mine, theirs = list(live.values()), [average[name] for name in live]
        buffers = [name for name in self._buffers() if name in average]
        with torch.no_grad():
            kept = [tensor.detach().clone() for tensor in mine]
        try:
            with torch.no_grad():
                _copy(mine, theirs)
            yield
            with torch.no_grad():  # statistics that were recomputed for the average stay with it
                _copy([average[name] for name in buffers], [live[name] for name in buffers])
        finally:
            with torch.no_grad():
                _copy(mine, kept)

    def state_dict(self) -> dict[str, Any]:
        average = self._current() if self.updates else self._live()
        return {"updates": self.updates, "average": {name: tensor.detach() for name, tensor in average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        live, saved = self._live(), state["average"]
        if different := live.keys() ^ saved.keys():
            raise CheckpointError(
                f"the checkpoint's average (hooks.ema) is of another model: it differs in {sorted(different)[:5]}"
            )
        self.updates, self.buffers_behind = state["updates"], False
        self.average = {}
        if self.updates:
            with torch.no_grad():
                self.average = {
                    name: torch.empty_like(live[name]).copy_(like(saved[name], live[name])) for name in live
                }
            self.targets = [local(self.average[name]) for name in self.averaged]

    def _current(self) -> dict[str, torch.Tensor]:
        """The average with the buffers that it follows brought up to date."""
        if self.buffers_behind:
            follow = {name: buffer for name, buffer in self._buffers().items() if name not in self.averaged}
            with torch.no_grad():
                _copy([self.average[name] for name in follow], list(follow.values()))
            self.buffers_behind = False
        return self.average

    def _live(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters(remove_duplicate=False)) | self._buffers()

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Looked up each time: a module may put another tensor in a buffer's place, never in a parameter's."""
        buffers = self.model.named_buffers(remove_duplicate=False)
        return {name: buffer for name, buffer in buffers if name in self.persistent}

    def _sources(self) -> list[torch.Tensor]:
        if not self.update_buffers:
            return list(self.sources)
        buffers = self._buffers()
        return [*self.sources, *(buffers[name] for name in self.averaged[len(self.sources) :])]


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """`torch._foreach_copy_` of each rank's part; it refuses empty lists."""
    if targets:
        torch._foreach_copy_([local(target) for target in targets], [local(source) for source in sources])
