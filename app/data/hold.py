"""Turns a data set that would be read while training into one held in memory, or in a file of decoded pixels."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from app.data.order import Request
from app.data.source import ImageFiles, ImageTensor, Source, describe
from app.data.worker_reader import WorkerReader
from app.errors import CannotWrite, DataError
from app.files import write_durable, write_json

logger = logging.getLogger(__name__)

CACHE = Path("outputs") / ".cache"
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


def hold(source: Source, reader: WorkerReader, side: int | None, on_error: str, training: bool) -> ImageTensor:
    """Read all samples as evaluation sees them: into memory, or for `ImageFiles.cache` into a file that is mapped.

    Raises:
        DataError: unreadable samples, images of several sizes, float images, more than the memory holds, a training
            part that gives other images in every epoch.
        CannotWrite: the cache.
    """
    first = reader.fetch([0]).images
    if first.dtype != torch.uint8:
        raise DataError("data.in_memory=true needs uint8 or PIL images; this data set gives float ones")
    shape = (len(source), *first.shape[1:])
    if not isinstance(source, ImageFiles):
        if training:
            _check_constant(source, reader)
    elif source.cache:
        return _cached(CACHE / f"decoded-{_key(source, side, on_error)}", reader, shape)
    size, memory = math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DataError(
            f"data.in_memory: {shape[0]:,} images of {_size(first)} take {size / 2**30:.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f}; set data.in_memory=false, or data.image_size smaller"
        )
    begin = time.monotonic()
    images = torch.empty(shape, dtype=torch.uint8)
    targets, _ = _fill(images, reader)
    logger.info("decoded %d images in %.1f s", len(images), time.monotonic() - begin)
    return ImageTensor(images, targets)


def _check_constant(source: Source, reader: WorkerReader) -> None:
    """Raise DataError for a data set that augments by itself: held in memory, its first epoch would be its only one."""
    for i in range(min(PROBED, len(source))):
        index = i * len(source) // PROBED
        if not torch.equal(reader.fetch([index], epoch=0).images, reader.fetch([index], epoch=1).images):
            raise DataError(
                f"data.in_memory=true: {describe(source, index)} is another image in every epoch: this data set "
                "augments by itself; set data.in_memory=auto, or augment with data.augment"
            )


def _cached(folder: Path, reader: WorkerReader, shape: tuple[int, ...]) -> ImageTensor:
    """The images and targets of `folder`, which is made where it is not there or cannot be read."""
    found = _open(folder, reader, shape)
    if found is None:
        _write(folder, reader, shape)
        found = _open(folder, reader, shape)
        assert found is not None
    return found


def _open(folder: Path, reader: WorkerReader, shape: tuple[int, ...]) -> ImageTensor | None:
    if not folder.exists():
        return None
    try:
        images, targets = np.load(folder / "images.npy", mmap_mode="c"), np.load(folder / "targets.npy")
        skipped = json.loads((folder / "skipped.json").read_bytes())
    except (OSError, EOFError, ValueError) as error:
        logger.warning("the cache %s cannot be read (%s) and is made anew", folder, error)
        return None
    if images.shape != shape:
        return None
    reader.report({int(index): reason for index, reason in skipped.items()})
    logger.info("decoded images are read from %s", folder)
    return ImageTensor(torch.from_numpy(images), torch.from_numpy(targets))


def _write(folder: Path, reader: WorkerReader, shape: tuple[int, ...]) -> None:
    """Decode into a folder beside `folder` and rename it: there is a whole cache or none."""
    begin = time.monotonic()
    temporary = folder.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        images = np.lib.format.open_memmap(temporary / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        targets, skipped = _fill(torch.from_numpy(images), reader)
        images.flush()
        write_durable(temporary / "targets.npy", lambda file: np.save(file, targets.numpy()))
        write_json(temporary / "skipped.json", skipped)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():
            return  # another process was quicker
        raise CannotWrite(f"data.cache: cannot write {temporary.absolute()}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("decoded %d images in %.1f s into %s", len(images), time.monotonic() - begin, folder)


def spare_workers(size: int, processes: int) -> int:
    """Loader processes that decode so many images once, where none are configured; 0 for few images or one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, cores // processes)
    return workers if size >= WORTH_WORKERS and workers > 1 else 0


def _fill(images: torch.Tensor, reader: WorkerReader) -> tuple[torch.Tensor, dict[int, str]]:
    """Put all images into `images`; give back the targets, and what was unreadable.

    The targets are those that were read, not the source's: an unreadable sample has both of the next one.
    """
    targets, skipped = [], {}
    parts = torch.split(torch.arange(len(images)), BATCH)
    for request, fetched in reader.fetch_all(Request(part, len(part)) for part in parts):
        if fetched.images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"data: images differ in size: sample 0 is {_size(images[0])}, sample {int(request.indices[0])} is "
                f"{_size(fetched.images[0])}; set data.image_size"
            )
        images[request.indices] = fetched.images
        targets.append(fetched.targets)
        skipped.update(fetched.skipped)
    return torch.cat(targets), skipped


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


def _key(files: ImageFiles, side: int | None, on_error: str) -> str:
    """Changes with the files' names, labels, sizes and times, and with how they are read."""
    digest = blake2b(repr((side, files.resize, len(files), on_error)).encode(), digest_size=8)
    digest.update(files.targets.numpy().tobytes())
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
