"""Fetches the samples of a batch: what a loader worker does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import interpolate

from app.config.schema.augment import Recipe
from app.core import rng
from app.data.augment import Augmenter, crop_of_files, crop_parameters
from app.data.source import ImageFiles, ImageTensor, Source, describe, resized

NOTHING: Recipe = []


class Fetched(NamedTuple):
    """What a worker sends back. No exception crosses the process boundary: torch would wrap it beyond recognition."""

    images: torch.Tensor
    """(n, channels, height, width), uint8, or float where a dataset gives it."""
    targets: torch.Tensor
    skipped: dict[int, str]
    """Samples that cannot be read and for which the next one is used, and why."""
    failure: str | None = None
    """Why there are no images."""
    details: str = ""
    """The traceback of `failure` where it comes from foreign code."""


class UnusableSampleError(Exception):
    """A sample that cannot be used, in words."""


class Fetcher:
    """Fetches samples of one part of a data set; each loader worker has one."""

    def __init__(
        self, source: Source, *, seed: int, side: int | None, num_classes: int, attempts: int, augmenter: Augmenter
    ) -> None:
        self.source, self.seed, self.side, self.num_classes, self.attempts = source, seed, side, num_classes, attempts
        self._augment = augmenter
        self.note: Callable[[int], object] = lambda sample: None
        """Told which sample is being read, -1 for none: what a dead or silent worker was doing."""

    def fetch(self, entries: Sequence[int], epoch: int | None = None, recipe: Recipe = NOTHING) -> Fetched:
        """The samples of `entries`, modulo the data set's size: augmented in an epoch, else as evaluation sees them."""
        skipped: dict[int, str] = {}
        try:
            with rng.preserved():
                images, targets = zip(*self._samples(entries, epoch, recipe, skipped), strict=True)
            stacked = self._stacked(entries, images)
            if isinstance(self.source, ImageTensor) and self.side is not None:
                stacked = resized(stacked, self.side)
            if epoch is not None and stacked.dtype == torch.uint8:
                stacked = self._augment(stacked, torch.tensor(entries), epoch, recipe)
            return Fetched(stacked, stack_targets(targets), skipped)
        except UnusableSampleError as error:
            return Fetched(torch.empty(0), torch.empty(0), skipped, str(error), traceback.format_exc())
        except Exception as error:
            text = f"data: {describe(self.source, entries[0] % len(self.source))} and what follows: "
            text += f"{type(error).__name__}: {error}"
            return Fetched(torch.empty(0), torch.empty(0), skipped, text, traceback.format_exc())
        finally:
            self.note(-1)

    def _samples(
        self, entries: Sequence[int], epoch: int | None, recipe: Recipe, skipped: dict[int, str]
    ) -> Iterator[tuple[torch.Tensor, Any]]:
        """Image and target of each entry."""
        crops: Sequence[Any] = [None] * len(entries)
        # Files are cropped here, out of the whole picture; images in memory by the augmenter, as MemoryReader does it.
        crop = None if isinstance(self.source, ImageTensor) else crop_of_files(recipe)
        if epoch is not None and crop is not None:
            crops = crop_parameters(self.seed, epoch, torch.tensor(entries), **crop).tolist()
        for entry, parameters in zip(entries, crops, strict=True):
            if not isinstance(self.source, (ImageTensor, ImageFiles)):
                rng.seed_sample(self.seed, -1 if epoch is None else epoch, entry)
            box_of = self._centre if parameters is None else random_box(*parameters)
            yield self._read(entry % len(self.source), box_of, skipped)

    def _read(self, index: int, box_of: Callable[[int, int], Any], skipped: dict[int, str]) -> tuple[torch.Tensor, Any]:
        """The sample, or with on_error=skip the nearest one after it that can be read."""
        first: UnusableSampleError | None = None
        for attempt in range(self.attempts):
            sample = (index + attempt) % len(self.source)
            self.note(sample)
            try:
                return self._load(sample, box_of)
            except UnusableSampleError as error:
                first = first or error
                skipped[sample] = str(error)
        hint = "set data.on_error=skip to go on without it" if self.attempts == 1 else "nor any of its neighbours"
        raise UnusableSampleError(f"{skipped[index]}; {hint}") from first

    def _load(self, index: int, box_of: Callable[[int, int], Any]) -> tuple[torch.Tensor, Any]:
        if isinstance(self.source, ImageTensor):
            return self.source.images[index], self.source.targets[index]
        if isinstance(self.source, ImageFiles):
            return read_file(self.source, index, self.side, box_of), self.source.targets[index]
        try:
            image, target = self.source[index]
            image = to_tensor(image)
        except Exception as error:
            name = describe(self.source, index)
            raise UnusableSampleError(f"data: {name} raised {type(error).__name__}: {error}") from error
        self._check_target(target, index)
        return fit(image, self.side, box_of), target

    def _check_target(self, target: Any, index: int) -> None:
        value = torch.as_tensor(target)
        if value.ndim == 0 and not value.is_floating_point() and 0 <= int(value) < self.num_classes:
            return
        if value.ndim == 1 and value.is_floating_point() and len(value) == self.num_classes:
            return
        raise UnusableSampleError(
            f"data: {describe(self.source, index)} has target {target!r}; expected a class index from 0 to "
            f"{self.num_classes - 1}, or a float vector of {self.num_classes} numbers"
        )

    def _stacked(self, entries: Sequence[int], images: Sequence[torch.Tensor]) -> torch.Tensor:
        first = images[0]
        for entry, image in zip(entries, images, strict=True):
            if image.shape != first.shape or image.dtype != first.dtype:
                size = len(self.source)
                raise UnusableSampleError(
                    f"data: images differ in size: {describe(self.source, entries[0] % size)} is "
                    f"{_shape(first)}, {describe(self.source, entry % size)} is {_shape(image)}; set data.image_size"
                )
        return torch.stack(list(images)).contiguous()

    def _centre(self, width: int, height: int) -> Any:
        from app.data.decode import centre_box

        return centre_box(width, height, self.side, getattr(self.source, "resize", None))


def read_file(files: ImageFiles, index: int, side: int | None, box_of: Callable[[int, int], Any]) -> torch.Tensor:
    """The decoded image, or UnusableSampleError with the path."""
    from app.data.decode import UnreadableError, decode

    size = 0
    try:
        data = files.read(index)
        size = len(data)
        return decode(data, side, box_of, files.max_pixels)
    except (OSError, UnreadableError) as error:
        raise UnusableSampleError(
            f"data: cannot read {files.paths[index]} ({size:,} bytes, sample {index}): {error}"
        ) from error


def random_box(root_area: float, root_ratio: float, x: float, y: float) -> Callable[[int, int], Any]:
    """The box of `crop_parameters` in an image of any size."""

    def box_of(width: int, height: int) -> tuple[float, float, float, float]:
        side = (width * height) ** 0.5 * root_area
        part_width, part_height = min(width, side * root_ratio), min(height, side / root_ratio)
        return x * (width - part_width), y * (height - part_height), part_width, part_height

    return box_of


def fit(image: torch.Tensor, side: int | None, box_of: Callable[[int, int], Any]) -> torch.Tensor:
    """The box of an image tensor, resized to `side`."""
    height, width = image.shape[-2:]
    left, top, part_width, part_height = box_of(width, height)
    x, y = round(left), round(top)
    image = image[..., y : max(round(top + part_height), y + 1), x : max(round(left + part_width), x + 1)]
    if side is None or image.shape[-2:] == (side, side):
        return image
    return interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]


def to_tensor(image: Any) -> torch.Tensor:
    """(channels, height, width) of what a dataset gives: uint8, or float as it is."""
    if not isinstance(image, torch.Tensor):
        import numpy as np

        image = torch.from_numpy(np.array(image))
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    pixels: torch.Tensor = image[None] if image.ndim == 2 else image
    if pixels.ndim != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise TypeError(
            "an image must be a PIL image, or a uint8 or float tensor (channels, height, width), "
            f"got {pixels.dtype} {tuple(pixels.shape)}"
        )
    return pixels


def stack_targets(targets: Sequence[Any]) -> torch.Tensor:
    """(n,) int64 or (n, classes) float32."""
    stacked = torch.stack([torch.as_tensor(target) for target in targets])
    return stacked.float() if stacked.is_floating_point() else stacked.long()


def _shape(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]} with {image.shape[0]} channels, {image.dtype}"
