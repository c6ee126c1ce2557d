"""Image files and data sets of one's own, read while training by loader workers or by this process."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch

from app.core.state import Batch
from app.data.fetch import Fetched, Fetcher
from app.data.normalize import Normalize
from app.data.order import Request
from app.data.workers import Workers
from app.errors import DataError

NewWorkers = functools.partial[Workers]
"""Workers with all arguments but the fetcher."""

logger = logging.getLogger(__name__)


class WorkerReader:
    """Reads one part of a data set with loader workers, started when first needed; see app.data.reader."""

    def __init__(self, fetcher: Fetcher, workers: NewWorkers, normalize: Normalize, max_errors: int) -> None:
        self.fetcher = fetcher
        self._new_workers, self._normalize, self._max_errors = workers, normalize, max_errors
        self._workers: list[Workers] = []
        self._skipped: set[int] = set()

    @property
    def placement(self) -> str:
        count = self._new_workers.keywords["count"]
        return f"images read by {count} workers" if count else "images read by this process"

    def read(self, requests: Iterator[Request]) -> Iterator[Batch]:
        for request, fetched in self.fetch_all(requests):
            images, targets = self._normalize(fetched.images), self._normalize.move(fetched.targets)
            yield Batch(images, targets, request.indices, request.size)

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        images = self.fetch(indices).images
        return images if images.dtype == torch.uint8 else self._normalize.undo(images)

    def fetch(self, indices: Sequence[int], epoch: int | None = None) -> Fetched:
        """Samples, fetched by this process: as evaluation sees them, or as `epoch` does, without augmentation."""
        return self._checked(self.fetcher.fetch(indices, epoch))

    def fetch_all(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        """What workers fetch for each request, in order."""
        # Workers that nobody uses: someone else may be in the middle of an epoch.
        workers = next((workers for workers in self._workers if not workers.busy and not workers.broken), None)
        if workers is None:
            workers = self._new_workers(self.fetcher)
            self._workers.append(workers)
        for request, fetched in workers.read(requests):
            yield request, self._checked(fetched)

    def close(self) -> None:
        for workers in self._workers:
            workers.close()
        self._workers.clear()

    def report(self, skipped: Mapping[int, str]) -> None:
        """Say once, and count, what could not be read.

        Raises:
            DataError: too many.
        """
        for index, reason in skipped.items():
            if index in self._skipped:
                continue
            self._skipped.add(index)
            logger.warning("%s; the next sample is used (%d of %d)", reason, len(self._skipped), self._max_errors)
            if len(self._skipped) >= self._max_errors:
                raise DataError(
                    f"{len(self._skipped)} samples cannot be read (data.max_errors={self._max_errors}); last: {reason}"
                )

    def _checked(self, fetched: Fetched) -> Fetched:
        if fetched.failure is None:
            self.report(fetched.skipped)
        return checked(fetched)


def checked(fetched: Fetched) -> Fetched:
    """What was read, or the DataError that says why there is nothing."""
    if fetched.failure is None:
        return fetched
    error = DataError(fetched.failure)
    error.add_note(fetched.details)
    raise error
