"""What a target of the data group gives back, and what is checked about it before training.

A data set of one's own is any callable that returns one of

- a map-style dataset (`__len__`, `__getitem__` -> (image, target)) with an attribute `classes`; the callable has a
  parameter `split`, and is called with `split="train"` and `split="val"`;
- a mapping `{"train": dataset, "val": dataset}` of such datasets, `"test"` too if there is one;
- `Splits`.

An image is a PIL image, a uint8 tensor (channels, height, width) or (height, width), which are augmented and
normalised here, or a float tensor, which is taken as it is. A target is a class index, or for multi-label data a float
vector with one number per class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.functional import interpolate

from app.errors import DataError

MOST_CLASSES = 200_000
"""The size of a model follows from this number, which is taken from data; ImageNet-22k has 21,841."""


@runtime_checkable
class MapDataset(Protocol):
    """A map-style dataset, torch's or anyone's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(slots=True)
class ImageTensor:
    """Images of one size, held in memory."""

    images: torch.Tensor
    """(n, channels, height, width) uint8."""
    targets: torch.Tensor
    """(n,) int64, or (n, classes) float for multi-label data."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(slots=True)
class ImageFiles:
    """Image files, in a folder or in an uncompressed tar archive."""

    paths: Sequence[str]
    """As messages show them."""
    targets: torch.Tensor
    """(n,) int64."""
    archive: Path | None = None
    """The tar archive that holds them; None: each path is a file."""
    extents: Sequence[tuple[int, int]] = ()
    """Offset and length in `archive`, in bytes."""
    max_pixels: int = 178_956_970
    resize: int | None = None
    cache: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The bytes of one file."""
        if self.archive is None:
            with open(self.paths[index], "rb") as stream:
                return stream.read()
        offset, length = self.extents[index]
        with open(self.archive, "rb") as stream:
            stream.seek(offset)
            return stream.read(length)


@dataclass(slots=True)
class Subset:
    """Some samples of a dataset."""

    dataset: MapDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Any:
        return self.dataset[self.indices[index]]


Source = ImageTensor | ImageFiles | MapDataset


@dataclass(slots=True)
class Splits:
    """A data set: its parts, the names of its classes, and its pixels' statistics where known."""

    train: Source
    val: Source
    classes: Sequence[str]
    test: Source | None = None
    """None: the validation part."""
    mean: Sequence[float] | None = None
    """Per channel, of pixels scaled to [0, 1]."""
    std: Sequence[float] | None = None

    def part(self, split: str) -> Source:
        """The part named `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test or self.val}[split]


def read_splits(make: Callable[..., Any], parameters: Collection[str]) -> Splits:
    """The splits that `make` gives back, in any of the forms above; `parameters` are the names that it accepts.

    Raises:
        DataError: what it gives back is none of them.
    """
    if "split" in parameters:
        made: Any = {split: make(split=split) for split in ("train", "val")}
    else:
        made = make()
    if isinstance(made, Splits):
        return made
    if not isinstance(made, Mapping) or not {"train", "val"} <= set(made) <= {"train", "val", "test"}:
        raise DataError(
            f"data._target_ must give back Splits, a mapping {{'train': dataset, 'val': dataset}}, or a dataset "
            f"for each of split=train and split=val (a parameter `split`), got {type(made).__name__}"
        )
    for split, dataset in made.items():
        if not isinstance(dataset, MapDataset):
            raise DataError(f"data: the {split} part must have __len__ and __getitem__, got {type(dataset).__name__}")
    classes = {split: getattr(dataset, "classes", None) for split, dataset in made.items()}
    if classes["train"] is None:
        raise DataError(
            f"data: {type(made['train']).__name__} must have an attribute `classes`, the names of its classes"
        )
    for split, names in classes.items():
        if names is not None:
            check_same_classes(classes["train"], names, split)
    return Splits(made["train"], made["val"], [str(name) for name in classes["train"]], made.get("test"))


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize uint8 images (n, channels, height, width) as a whole to `side` pixels square: bilinear, antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    parts = [interpolate(part, (side, side), mode="bilinear", antialias=True) for part in torch.split(images, 1024)]
    return torch.cat(parts)


def take(source: Source, limit: int | None) -> Source:
    """`limit` samples, evenly spread over `source` (whose order is often by class); all of them for None."""
    if limit is None or limit >= len(source):
        return source
    indices = [i * len(source) // limit for i in range(limit)]
    if isinstance(source, ImageTensor):
        return ImageTensor(source.images[indices], source.targets[indices])
    if isinstance(source, ImageFiles):
        return pick(source, indices)
    return Subset(source, indices)


def pick(files: ImageFiles, indices: Sequence[int]) -> ImageFiles:
    """Some of the files."""
    return ImageFiles(
        paths=[files.paths[i] for i in indices],
        targets=files.targets[list(indices)],
        archive=files.archive,
        extents=[files.extents[i] for i in indices] if files.archive else (),
        max_pixels=files.max_pixels,
        resize=files.resize,
        cache=files.cache,
    )


def describe(source: Source, index: int) -> str:
    """How a message names one sample."""
    if isinstance(source, ImageFiles):
        return f"{source.paths[index]} (sample {index})"
    return f"sample {index} of {type(source).__name__}"


def check_same_classes(train: Sequence[str], other: Sequence[str], split: str) -> None:
    """Raises DataError naming the first difference of two class lists."""
    if list(train) == list(other):
        return
    missing = [name for name in train if name not in other]
    extra = [name for name in other if name not in train]
    parts = [f"only in train: {', '.join(map(str, missing[:5]))}"] if missing else []
    parts += [f"only in {split}: {', '.join(map(str, extra[:5]))}"] if extra else []
    found = "; ".join(parts) or "the same names in another order"
    raise DataError(f"data: train has {len(train)} classes and {split} has {len(other)}, and they differ: {found}")


def check_targets(source: Source, classes: Sequence[str], split: str) -> None:
    """Raises DataError for an empty part, or for targets that are no class, naming the file or row.

    Of a dataset of one's own only an attribute `targets` can be looked at; its samples are checked as they come.
    """
    if len(source) == 0:
        raise DataError(f"data: the {split} part is empty")
    targets = torch.as_tensor(getattr(source, "targets", ()))
    if targets.numel() == 0:
        return
    if targets.is_floating_point():
        if targets.ndim != 2 or targets.shape[1] != len(classes):
            raise DataError(
                f"data: multi-label targets of {split} must have shape (samples, {len(classes)} classes), "
                f"got {tuple(targets.shape)}"
            )
        return
    wrong = ((targets < 0) | (targets >= len(classes))).nonzero()
    if len(wrong):
        index = int(wrong[0, 0])
        raise DataError(
            f"data: {split}: {describe(source, index)} has label {int(targets[index])}, "
            f"but there are {len(classes)} classes: 0 to {len(classes) - 1}"
        )


def sources_of(splits: Splits, limit_train: int | None, limit_val: int | None) -> dict[str, Source]:
    """The parts by name, checked; without `test` where it is the validation part.

    Raises:
        DataError: an empty part, labels that are no class, more classes than anybody has.
    """
    if len(splits.classes) > MOST_CLASSES:
        raise DataError(f"data: {len(splits.classes):,} classes are more than {MOST_CLASSES:,}; are these labels?")
    sources = {"train": take(splits.train, limit_train), "val": take(splits.val, limit_val)}
    if splits.test is not None and splits.test is not splits.val:
        sources["test"] = splits.test
    for split, source in sources.items():
        check_targets(source, splits.classes, split)
    return sources
