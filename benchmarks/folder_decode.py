"""JPEG files to normalised batches: CPU time per image against torchvision's ImageFolder with PIL.

python -m benchmarks.folder_decode ROOT [ROUNDS]: ROOT holds train/CLASS/*.jpg and val/CLASS/*.jpg, unpacked.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from app.config.schema.data import DataConf
from app.core.ranks import World
from app.data.feed import Feed
from app.data.folder import folder
from benchmarks.measure import Section, interleaved, ratio, spread

IMAGES, BATCH = 512, 64
SIDES = (64, 128, 224)
HALVES = [0.5] * 3


def our_feed(root: Path, side: int) -> Feed:
    """The folder data set with random resized crops and flips, read by this process."""
    fields = {item.name: item.default for item in dataclasses.fields(DataConf)}
    changes: dict[str, Any] = {"augment": ["resized_crop", "flip"], "image_size": side, "batch_size": BATCH}
    changes |= {"in_memory": False, "eval_batch_size": BATCH, "limit_train": IMAGES, "limit_val": IMAGES}
    return Feed(folder(str(root)), fields | changes, world=World(torch.device("cpu")), seed=0)


def their_loaders(root: Path, side: int) -> tuple[Iterable[Any], Iterable[Any]]:
    """The usual recipe for training and evaluation."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALVES, HALVES)]
    train = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), *tensor])
    evaluate = v2.Compose([v2.Resize(round(side / 0.875)), v2.CenterCrop(side), *tensor])
    loaders = []
    for part, transform in (("train", train), ("val", evaluate)):
        files = ImageFolder(str(root / part), transform)
        chosen = [i * len(files) // IMAGES for i in range(IMAGES)]
        loaders.append(DataLoader(Subset(files, chosen), BATCH, shuffle=part == "train"))
    return loaders[0], loaders[1]


def milliseconds(read: Callable[[], Iterable[Any]]) -> float:
    """CPU time per image of one pass."""
    begin = process_time()
    for _ in read():
        pass
    return (process_time() - begin) / IMAGES * 1e3


def folder_decode(root: Path, rounds: int) -> Section:
    """The section of the report."""
    section = Section(
        "Folders of JPEG files",
        f"{IMAGES} photos of 224x224 pixels, decoded, cropped at random, resized, mirrored, made float and "
        "normalised, in batches of 64, by one process with one thread; CPU milliseconds per image, the median of "
        f"{rounds} interleaved rounds (least to greatest). torchvision: ImageFolder, transforms.v2, DataLoader.",
        ("side", "pass", "torchvision, ms", "app, ms", "app / torchvision"),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for side in SIDES:
        feed = our_feed(root, side)
        train, evaluation = their_loaders(root, side)
        contenders: dict[str, Callable[[], Iterable[Any]]] = {
            "theirs train": lambda train=train: train,
            "ours train": lambda feed=feed: feed.train(0, 0),
            "theirs evaluation": lambda evaluation=evaluation: evaluation,
            "ours evaluation": lambda feed=feed: feed.evaluate("val"),
        }
        times = interleaved({name: lambda read=read: milliseconds(read) for name, read in contenders.items()}, rounds)
        for name in ("train", "evaluation"):
            theirs, ours = times[f"theirs {name}"], times[f"ours {name}"]
            section.rows.append([str(side), name, spread(theirs), spread(ours), ratio(ours, theirs)])
        feed.close()
    torch.set_num_threads(threads)
    return section


if __name__ == "__main__":
    print(folder_decode(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 7).markdown())
