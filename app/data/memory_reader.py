"""Images held as uint8 in memory, augmented many batches at a time on the training device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from app.core.state import Batch
from app.data.augment import Augmenter
from app.data.normalize import Normalize
from app.data.order import Request
from app.data.source import ImageTensor, resized

GROUP_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Float pixels that are prepared in one go: on a CPU they stay in its cache, on a GPU few kernels are launched."""


class MemoryReader:
    """Reads one part of a data set from memory; see app.data.reader."""

    def __init__(
        self,
        source: ImageTensor,
        *,
        side: int | None,
        augmenter: Augmenter,
        normalize: Normalize,
        device: torch.device,
        resident: bool,
    ) -> None:
        self._host = source.images if side is None else resized(source.images, side)
        self._images = self._host.to(device) if resident else self._host
        self._targets = source.targets.to(device)
        self._augment, self._normalize, self._device = augmenter, normalize, device
        sample_bytes = 4 * self._host[0].numel()
        self._group = max(1, GROUP_BYTES.get(device.type, GROUP_BYTES["cpu"]) // sample_bytes)

    @property
    def placement(self) -> str:
        return f"images held on {self._images.device}"

    def read(self, requests: Iterator[Request]) -> Iterator[Batch]:
        for group in _grouped(requests, self._group):
            entries = group[0].indices if len(group) == 1 else torch.cat([request.indices for request in group])
            samples = entries % len(self._host)  # with repeats, an epoch has several entries of a sample
            images = self._gather(samples)
            epoch, recipe = group[0].epoch, group[0].recipe
            if epoch is not None and recipe:
                images = self._augment(images, entries.to(images.device), epoch, recipe)
            targets = self._targets.index_select(0, samples.to(self._device))
            lengths = [len(request.indices) for request in group]
            parts = torch.split(self._normalize(images), lengths), torch.split(targets, lengths)
            for request, batch, labels in zip(group, *parts, strict=True):
                yield Batch(batch, labels, request.indices, request.size)

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        return self._host[list(indices)]

    def close(self) -> None:
        pass

    def _gather(self, samples: torch.Tensor) -> torch.Tensor:
        if self._images.device == self._device:
            return self._images.index_select(0, samples.to(self._device))
        return self._normalize.move(self._images.index_select(0, samples))


def _grouped(requests: Iterator[Request], samples: int) -> Iterator[list[Request]]:
    """Lists of requests for at least `samples` together."""
    group: list[Request] = []
    count = 0
    for request in requests:
        group.append(request)
        count += len(request.indices)
        if count >= samples:
            yield group
            group, count = [], 0
    if group:
        yield group
