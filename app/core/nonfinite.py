"""Name the step whose numbers are not finite, and what helps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from app.core.state import Run

REMEDY = (
    "what helps: a lower optim.lr, a longer schedule.warmup, train.clip_norm=1, train.amp=bf16 instead of fp16, "
    "or hooks.nan_guard with policy=skip or rollback (+hooks=nan_guard)"
)


@dataclass(slots=True)
class StepRecord:
    """The numbers of one step, read from the device."""

    step: int
    epoch: int
    batch: int
    """0-based, like `epoch`."""
    lr: float
    loss: float
    grad_norm: float | None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and (self.grad_norm is None or math.isfinite(self.grad_norm))


def describe(run: Run, record: StepRecord, what: str) -> str:
    """`step 5 (epoch 2, batch 2): WHAT not finite, loss nan, lr 0.1, samples 3, 1, …, last good checkpoint: PATH`."""
    parts = [f"step {record.step} (epoch {record.epoch + 1}, batch {record.batch + 1}): {what} not finite"]
    parts.append(f"loss {record.loss}")
    if record.grad_norm is not None:
        parts.append(f"grad norm {record.grad_norm}")
    parts.append(f"lr {record.lr:g}")
    if run.state.scaler is not None:
        parts.append(f"loss scale {run.state.scaler.get_scale():g}")
    if run.world.is_main and not record.finite:
        parts.append(f"samples {sample_indices(run, record)}")
    found = (hook.newest_checkpoint() for hook in run.hooks.values())
    newest = next((path for path in found if path is not None), None)
    parts.append(f"last good checkpoint: {newest or 'none'}")
    return ", ".join(parts)


def sample_indices(run: Run, record: StepRecord, most: int = 16) -> str:
    """This rank's samples of a past step, drawn again: the order is a function of the epoch."""
    for step in run.data.train(record.epoch, record.batch):
        indices = [index for micro in step.micros for index in micro.indices[: micro.size].tolist()]
        return ", ".join(map(str, indices[:most])) + (", …" if len(indices) > most else "")
    return "unknown"


def greatest(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The greatest magnitude in each floating-point tensor, or in this rank's shard of it; NaN where there is one."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    local = [tensor for tensor in local if tensor.numel() and tensor.dtype.is_floating_point]
    if not local:
        return torch.zeros(1)
    return torch.stack([norm.float() for norm in torch._foreach_norm(local, float("inf"))])
