"""Batch-norm statistics of the weights that are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from app.config.schema.hooks import PreciseBNConf
from app.core.clock import due
from app.core.hook import Hook
from app.core.state import Run


class PreciseBN(PreciseBNConf, Hook):
    """Recomputes batch-norm statistics before validation, as in "Rethinking Batch in BatchNorm" (arXiv:2105.07576).

    They are the plain mean of the batch statistics of `num_samples` training samples, at most one epoch's, over all
    ranks, under the training augmentation. It runs inside the EMA hook's swap (priority), so they belong to the
    weights that are validated; without EMA training goes on with them.
    """

    in_test = False

    def __post_init__(self) -> None:
        self.validations = 0

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        if due(self.validations + 1, self.interval):
            recompute(run, self.num_samples)
        yield

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        self.validations += 1

    def state_dict(self) -> dict[str, int]:
        return {"validations": self.validations}

    def load_state_dict(self, state: dict[str, int]) -> None:  # type: ignore[override]
        self.validations = state["validations"]


@torch.no_grad()
def recompute(run: Run, num_samples: int) -> None:
    """Replaces the running statistics of all batch norms of `run.state.model`; only these are in training mode.

    Raises:
        ValueError: a batch is too small for batch statistics (from torch).
    """
    model = run.state.model
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    if not norms:
        return
    training = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative average
        counted = _forward(run, model, norms, num_samples)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode
    run.world.average(statistics, weight=counted)


def _forward(run: Run, model: nn.Module, norms: list[_BatchNorm], num_samples: int) -> int:
    """Runs one epoch's first `num_samples` samples, over all ranks, through the model; returns this rank's batches."""
    seen = counted = 0
    for step in run.data.train(run.state.progress.epoch, 0):
        for micro in step.micros:
            kept = [] if micro.size else [tensor.clone() for norm in norms for tensor in norm.buffers()]
            model(micro.images)
            if kept:  # a dummy that keeps the ranks in step
                torch._foreach_copy_([tensor for norm in norms for tensor in norm.buffers()], kept)
            counted += bool(micro.size)
        seen += step.size
        if seen >= num_samples:
            break
    return counted
