"""Turns a data set that would be read while training into one held in memory, or in a file of decoded pixels."""

from __future__ import annotations

import logging
import os
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from app.data.archive import CACHE
from app.data.loader import LoaderPart
from app.data.source import ImageFiles, ImageTensor, Source
from app.errors import CannotWrite, DataError

logger = logging.getLogger(__name__)

SMALL_SIDE = 64
"""Files of larger images are decoded while training unless data.in_memory=true says otherwise."""
WORTH_WORKERS = 4096
"""Images below which starting processes takes longer than decoding."""
PROBED = 8
BATCH = 256


def should_hold(source: Source, in_memory: bool | str, side: int | None) -> bool:
    """Whether to hold it. `auto`: tensors, cached files, and files of small images that seem to have one size."""
    if isinstance(source, ImageFiles):
        return in_memory is True or source.cache or (in_memory == "auto" and _small_and_equal(source, side))
    return in_memory is True or (in_memory == "auto" and isinstance(source, ImageTensor))


def hold(source: Source, loader: LoaderPart, side: int | None) -> ImageTensor:
    """All samples as evaluation sees them: in memory, or with `ImageFiles.cache` in a file that is mapped into it.

    Raises:
        DataError: unreadable samples, images of several sizes, float images.
        CannotWrite: the file.
    """
    cached = isinstance(source, ImageFiles) and source.cache
    path = CACHE / f"decoded-{_key(source, side)}.npy" if cached and isinstance(source, ImageFiles) else None
    if path is None or not path.exists():
        begin = time.monotonic()
        images, targets = _decode(loader, path)
        logger.info(
            "decoded %d images in %.1f s%s", len(images), time.monotonic() - begin, f" into {path}" if path else ""
        )
    if path is not None:
        assert isinstance(source, ImageFiles)
        images, targets = torch.from_numpy(np.load(path, mmap_mode="c")), source.targets
    return ImageTensor(images, targets)


def spare_workers(size: int, processes: int) -> int:
    """Loader processes that decode so many images once, where none are configured; 0 for few images or one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, cores // processes)
    return workers if size >= WORTH_WORKERS and workers > 1 else 0


def _decode(loader: LoaderPart, path: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    first = loader.load([0]).images
    if first.dtype != torch.uint8:
        raise DataError("data.in_memory=true needs uint8 or PIL images; this data set gives float ones")
    shape = (len(loader), *first.shape[1:])
    if path is None:
        images = torch.empty(shape, dtype=torch.uint8)
        return images, _fill(images, loader)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        images = torch.from_numpy(mapped)
        targets = _fill(images, loader)
        mapped.flush()
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(f"data.cache: cannot write {temporary.absolute()}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return images, targets


def _fill(images: torch.Tensor, loader: LoaderPart) -> torch.Tensor:
    """Puts all images of `loader` into `images`; gives back the targets."""
    targets = []
    for place, loaded in loader.raw(BATCH):
        if loaded.images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"data: images differ in size: sample 0 is {_size(images[0])}, sample {place.start} is "
                f"{_size(loaded.images[0])}; set data.image_size"
            )
        images[place.start : place.stop] = loaded.images
        targets.append(loaded.targets)
    return torch.cat(targets)


def _small_and_equal(files: ImageFiles, side: int | None) -> bool:
    """Looks at the headers of a few files, spread over the data set."""
    from app.data.decode import UnreadableError, open_image

    sizes = set()
    for i in range(min(PROBED, len(files))):
        try:
            with open_image(files.read(i * len(files) // PROBED), files.max_pixels) as image:
                sizes.add(image.size)
        except (OSError, UnreadableError):
            return False  # reading it in earnest says what is wrong
    return len(sizes) == 1 and max(next(iter(sizes))) <= SMALL_SIDE and side in (None, *next(iter(sizes)))


def _key(files: ImageFiles, side: int | None) -> str:
    """Changes with the files' names, sizes and times, and with how they are resized."""
    digest = blake2b(repr((side, files.resize, len(files))).encode(), digest_size=8)
    if files.archive is not None:
        status = files.archive.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    for path in files.paths:
        digest.update(path.encode())
        if files.archive is None:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
