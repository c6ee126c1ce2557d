"""Images held as uint8 in memory, augmented many batches at a time on the training device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from app.config.schema.augment import Recipe
from app.data.augment import build_augmentation
from app.data.normalize import Normalize
from app.data.order import Micro
from app.data.source import ImageTensor, resized

GROUP_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Float pixels that are prepared in one go: on a CPU they stay in its cache, on a GPU few kernels are launched."""


class MemoryPart:
    """One part of a data set in memory."""

    def __init__(
        self,
        source: ImageTensor,
        *,
        seed: int,
        side: int | None,
        device: torch.device,
        resident: bool,
        normalize: Normalize,
    ) -> None:
        images = source.images if side is None else resized(source.images, side)
        self._host = images
        self._images = images.to(device) if resident else images
        self._targets = source.targets.to(device)
        self._seed, self._side, self._device, self._normalize = seed, images.shape[-1], device, normalize
        sample_bytes = 4 * images[0].numel()
        self._group = max(1, GROUP_BYTES.get(device.type, GROUP_BYTES["cpu"]) // sample_bytes)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def placement(self) -> str:
        """Where the images are, in words."""
        return f"images held on {self._images.device}"

    def train(
        self, micros: Iterator[Micro], epoch: int, recipe: Recipe
    ) -> Iterator[tuple[Micro, torch.Tensor, torch.Tensor]]:
        """Augmented, normalised images and targets of each micro-batch, on the device."""
        augment = build_augmentation(recipe, self._seed, crop_side=self._side)
        for group in _grouped(micros, self._group):
            entries = group[0].indices if len(group) == 1 else torch.cat([micro.indices for micro in group])
            samples = entries % len(self)
            images = self._gather(samples)
            if recipe:
                images = augment(images, entries.to(images.device), epoch)
            lengths = [len(micro.indices) for micro in group]
            targets = self._targets.index_select(0, samples.to(self._device))
            batches = torch.split(self._normalize(images), lengths)
            yield from zip(group, batches, torch.split(targets, lengths), strict=True)

    def evaluate(self, rounds: Iterator[range | None]) -> Iterator[tuple[range, torch.Tensor, torch.Tensor] | None]:
        """Normalised images and targets of each range; None for None."""
        for part in rounds:
            if part is None:
                yield None
                continue
            place = slice(part.start, part.stop)
            yield part, self._normalize(self._images[place].to(self._device)), self._targets[place]

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """(n, channels, height, width) uint8, on the CPU."""
        return self._host[list(indices)]

    def targets(self, indices: Sequence[int]) -> torch.Tensor:
        """The targets of some samples, on the CPU."""
        return self._targets[list(indices)].cpu()

    def close(self) -> None:
        """Nothing to end."""

    def _gather(self, samples: torch.Tensor) -> torch.Tensor:
        if self._images.device == self._device:
            return self._images.index_select(0, samples.to(self._device))
        rows = self._images.index_select(0, samples)
        return self._normalize.move(rows)


def _grouped(micros: Iterator[Micro], samples: int) -> Iterator[list[Micro]]:
    """Lists of micro-batches of at least `samples` together."""
    group: list[Micro] = []
    count = 0
    for micro in micros:
        group.append(micro)
        count += len(micro.indices)
        if count >= samples:
            yield group
            group, count = [], 0
    if group:
        yield group
