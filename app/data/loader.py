"""A part of a data set that is read while training, by loader workers or by the process itself."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch

from app.config.schema.augment import Recipe
from app.data.normalize import Normalize
from app.data.order import Micro
from app.data.reader import Loaded, Reader, Request
from app.data.workers import Workers
from app.errors import DataError

logger = logging.getLogger(__name__)


class LoaderPart:
    """One part of a data set behind loader workers, which are started when first needed and stay."""

    def __init__(
        self,
        reader: Reader,
        *,
        num_workers: int,
        timeout_seconds: float,
        start_method: str,
        max_errors: int,
        normalize: Normalize,
    ) -> None:
        self._reader, self._normalize, self._max_errors = reader, normalize, max_errors
        self.placement = f"images read by {num_workers} workers" if num_workers else "images read by this process"
        """Where the images come from, in words."""
        self._new_workers = functools.partial(Workers, reader, num_workers, timeout_seconds, start_method)
        self._workers: list[Workers] = []
        self._skipped: set[int] = set()

    def __len__(self) -> int:
        return len(self._reader)

    def train(
        self, micros: Iterator[Micro], epoch: int, recipe: Recipe
    ) -> Iterator[tuple[Micro, torch.Tensor, torch.Tensor]]:
        """Augmented, normalised images and targets of each micro-batch, on the device.

        Raises:
            DataError: an unreadable sample, a dead or silent worker.
        """
        asked: list[Micro] = []

        def requests() -> Iterator[Request]:
            for micro in micros:
                asked.append(micro)
                yield Request(micro.indices.tolist(), epoch, recipe)

        for loaded in self._read(requests()):
            yield asked.pop(0), self._normalize(loaded.images), self._normalize.move(loaded.targets)

    def evaluate(self, rounds: Iterator[range | None]) -> Iterator[tuple[range, torch.Tensor, torch.Tensor] | None]:
        """Normalised images and targets of each range; None for None (only ever the last)."""
        asked: list[range] = []
        pending: list[None] = []

        def requests() -> Iterator[Request]:
            for part in rounds:
                if part is None:
                    pending.append(None)
                    continue
                asked.append(part)
                yield Request(list(part))

        for loaded in self._read(requests()):
            yield asked.pop(0), self._normalize(loaded.images), self._normalize.move(loaded.targets)
        yield from pending

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """(n, channels, height, width) uint8, on the CPU, as evaluation sees them."""
        images = self.load(indices).images
        return images if images.dtype == torch.uint8 else self._normalize.undo(images)

    def targets(self, indices: Sequence[int]) -> torch.Tensor:
        """The targets of some samples; of an unreadable one that of the sample which is used instead."""
        return self.load(indices).targets

    def load(self, indices: Sequence[int], epoch: int | None = None) -> Loaded:
        """Some samples, read by this process: as evaluation sees them, or as `epoch` does, without augmentation."""
        return self._checked(self._reader[Request(list(indices), epoch)])

    def raw(self, batch_size: int) -> Iterator[tuple[range, Loaded]]:
        """All samples as evaluation sees them, in order."""
        parts = [range(i, min(i + batch_size, len(self))) for i in range(0, len(self), batch_size)]
        yield from zip(parts, self._read(Request(list(part)) for part in parts), strict=True)

    def close(self) -> None:
        """Ends the workers."""
        for workers in self._workers:
            workers.close()
        self._workers.clear()

    def _read(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        """Reads with workers of its own: someone else may be in the middle of an epoch."""
        workers = next((workers for workers in self._workers if not workers.busy and not workers.broken), None)
        if workers is None:
            workers = self._new_workers()
            self._workers.append(workers)
        for loaded in workers.read(requests):
            yield self._checked(loaded)

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

    def _checked(self, loaded: Loaded) -> Loaded:
        if loaded.failure is None:
            self.report(loaded.skipped)
        return checked(loaded)


def checked(loaded: Loaded) -> Loaded:
    """What was read, or the DataError that says why there is nothing."""
    if loaded.failure is None:
        return loaded
    error = DataError(loaded.failure)
    error.add_note(loaded.details)
    raise error
