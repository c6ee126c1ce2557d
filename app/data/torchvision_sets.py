"""MNIST and its relatives, CIFAR-10 and CIFAR-100, from the files that torchvision downloads.

They are read here, in memory, because torchvision unpacks next to its input, which fails for a read-only folder.
"""

import functools
import gzip
import hashlib
import math
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.data.source import ImageTensor, Splits
from app.errors import CannotWrite, DataError, TemporaryError

CLASSES = {
    "MNIST": [str(digit) for digit in range(10)],
    "FashionMNIST": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
    "KMNIST": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}
STATISTICS = {
    "MNIST": ([0.1307], [0.3081]),
    "FashionMNIST": ([0.2860], [0.3530]),
    "KMNIST": ([0.1918], [0.3483]),
    "CIFAR10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "CIFAR100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
"""Mean and standard deviation of the training pixels, per channel."""


LARGEST_IDX = 1 << 28
"""Bytes; MNIST's images are 47 MB."""


def torchvision_set(name: str = "MNIST", root: str = "data", download: bool = False) -> Splits:
    """The training images of a data set, and its test images for validation.

    Raises:
        DataError: a file is missing or damaged.
        TemporaryError: it could not be downloaded.
    """
    if download:
        _download(name, Path(root))
    read = _read_mnist if name in CLASSES else _read_cifar
    train, val, classes = read(name, Path(root))
    _unpacked.cache_clear()
    mean, std = STATISTICS[name]
    return Splits(train, val, classes, mean=mean, std=std)


def _download(name: str, root: Path) -> None:
    from filelock import FileLock
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # one process fetches, the others find the files
            getattr(datasets, name)(str(root), train=True, download=True)
    except PermissionError as error:
        raise CannotWrite(f"data.root: cannot write the download into {root.absolute()}: {error}") from error
    except (RuntimeError, OSError) as error:
        raise TemporaryError(
            f"data.download: cannot fetch {name} into {root.absolute()}: {error}; try again, or put the files "
            "there and set data.download=false"
        ) from error


def _missing(name: str, path: Path, layout: str) -> DataError:
    return DataError(
        f"data.root: {name} is not complete: {path.absolute()} does not exist. Expected: {layout}. "
        "Point data.root at the folder that holds it, or fetch it with data.download=true"
    )


def _read_mnist(name: str, root: Path) -> tuple[ImageTensor, ImageTensor, list[str]]:
    parts = []
    for stem in ("train", "t10k"):
        images = _read_idx(name, root / name / "raw" / f"{stem}-images-idx3-ubyte", dimensions=3)
        targets = _read_idx(name, root / name / "raw" / f"{stem}-labels-idx1-ubyte", dimensions=1)
        if len(images) != len(targets):
            raise DataError(f"data.root: {name}: {stem} has {len(images)} images but {len(targets)} labels")
        parts.append(ImageTensor(images.unsqueeze(1), targets.long()))
    return parts[0], parts[1], CLASSES[name]


def _read_idx(name: str, path: Path, dimensions: int) -> torch.Tensor:
    """A uint8 tensor from an idx file, plain or packed: magic (0, 0, type, dimensions), sizes, data."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.exists():
            content = path.read_bytes()
        elif packed.exists():
            with gzip.open(path := packed) as stream:
                content = stream.read(LARGEST_IDX)  # a packed file may hold a thousand times its own size
        else:
            raise _missing(
                name,
                path,
                f"{name}/raw/*-images-idx3-ubyte and *-labels-idx1-ubyte, for train and t10k, or .gz of them",
            )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.root: cannot read {path.absolute()} ({path.stat().st_size} bytes): {error}") from error
    header = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(sizes):
        raise DataError(
            f"data.root: {path.absolute()} is not a whole idx file of {dimensions} dimensions: it starts with "
            f"{content[:16]!r} and holds {len(content)} bytes; delete it and set data.download=true"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())


def _read_cifar(name: str, root: Path) -> tuple[ImageTensor, ImageTensor, list[str]]:
    from torchvision import datasets

    reader: Any = getattr(datasets, name)
    key = reader.meta["key"]
    classes = [
        str(label) for label in _read_pickle(name, root, reader, reader.meta["filename"], reader.meta["md5"])[key]
    ]
    parts = []
    for files in (reader.train_list, reader.test_list):
        entries = [_read_pickle(name, root, reader, file, md5) for file, md5 in files]
        pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = [label for entry in entries for label in entry["labels" if "labels" in entry else "fine_labels"]]
        parts.append(ImageTensor(torch.from_numpy(pixels), torch.tensor(labels)))
    return parts[0], parts[1], classes


def _read_pickle(name: str, root: Path, reader: Any, file: str, md5: str) -> dict[str, Any]:
    """One of the files, from its folder or the archive; pickles run code, so only with the known MD5 sum."""
    path, archive = root / reader.base_folder / file, root / reader.filename
    try:
        if path.exists():
            content = path.read_bytes()
        elif archive.exists():
            content = _unpacked(archive)[f"{reader.base_folder}/{file}"]
        else:
            raise _missing(
                name, path, f"{reader.base_folder}/ as unpacked from {reader.filename}, or {reader.filename} itself"
            )
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"data.root: cannot read {file} of {name} below {root.absolute()}: {error}") from error
    if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise DataError(
            f"data.root: {path.absolute()} is damaged or not the original: MD5 {found}, expected {md5}; "
            "delete it and set data.download=true"
        )
    entries: dict[str, Any] = pickle.loads(content, encoding="latin1")
    return entries


@functools.lru_cache(maxsize=1)
def _unpacked(archive: Path) -> dict[str, bytes]:
    """The files of a tar archive; kept, since seven reads of a packed archive in a row would unpack it seven times."""
    with tarfile.open(archive) as tar:
        return {member.name: stream.read() for member in tar if (stream := tar.extractfile(member)) is not None}
