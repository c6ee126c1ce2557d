"""The same buffers on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.config.schema.hooks import SyncBuffersConf
from app.core.hook import Hook
from app.core.state import Run


class SyncBuffers(SyncBuffersConf, Hook):
    """Replaces the floating-point buffers by their mean over the ranks, before validation and at the end of an epoch.

    Integer buffers (counters) are left alone. A single process has nothing to do.
    """

    in_test = False

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        average_buffers(run)
        yield

    def epoch_end(self, run: Run) -> None:
        average_buffers(run)


def average_buffers(run: Run) -> None:
    """All floating-point buffers of the model in one exchange."""
    run.world.average([buffer for buffer in run.state.model.buffers() if buffer.dtype.is_floating_point])
