"""Memory given back to the device."""

from __future__ import annotations

import torch

from app.config.schema.hooks import EmptyCacheConf
from app.core.hook import Hook
from app.core.state import Run, StepInfo


class EmptyCache(EmptyCacheConf, Hook):
    """Frees the CUDA caching allocator's unused blocks; on any other device nothing happens."""

    def epoch_start(self, run: Run) -> None:
        if self.before_epoch:
            empty_cache(run)

    def step_end(self, run: Run, step: StepInfo) -> None:
        if self.after_iter:
            empty_cache(run)

    def epoch_end(self, run: Run) -> None:
        if self.after_epoch:
            empty_cache(run)


def empty_cache(run: Run) -> None:
    """Frees what `run`'s device holds unused."""
    if run.world.device.type == "cuda":
        torch.cuda.empty_cache()
