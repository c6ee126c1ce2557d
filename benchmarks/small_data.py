"""Small images with random crop and mirroring, training a small network: batches in memory against the usual pipeline.

The usual one is what torchvision's MNIST, FashionMNIST and CIFAR10 do: PIL image by PIL image through transforms.v2,
collated by a DataLoader. Pixels are random: what they show costs nothing.
"""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from app.config.schema.data import DataConf
from app.core.ranks import World
from app.data.feed import Feed
from app.data.source import ImageTensor, Splits
from app.models.small_cnn import SmallCNN
from benchmarks.measure import Section, interleaved, ratio, spread

CASES = {"digits": (1, 8, 1792, 64), "Fashion-MNIST": (1, 28, 4096, 128), "CIFAR-10": (3, 32, 4096, 128)}
"""Channels, side, images of a pass, batch size."""
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class PilImages(Dataset[tuple[Any, int]]):
    """uint8 images handed out as PIL ones through a transform, as torchvision's small data sets do."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, transform: Callable[[Any], Any]) -> None:
        self.images, self.targets, self.transform = images.numpy(), targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        pixels = self.images[index]
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return self.transform(image), self.targets[index]


def our_feed(images: torch.Tensor, targets: torch.Tensor, batch_size: int) -> Feed:
    """The images as the app feeds them."""
    fields = {item.name: item.default for item in dataclasses.fields(DataConf)}
    fields |= {"augment": ["crop", "flip"], "batch_size": batch_size, "mean": [0.5], "std": [0.5]}
    part = ImageTensor(images, targets)
    splits = Splits(part, part, [str(number) for number in range(10)])
    return Feed(splits, fields, world=World(torch.device("cpu")), seed=0)


def our_batches(feed: Feed) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for step in feed.train(0, 0):
        for batch in step.micros:
            yield batch.images, batch.targets


def their_loader(images: torch.Tensor, targets: torch.Tensor, batch_size: int, workers: int) -> Batches:
    """The usual pipeline."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(images.shape[-1], padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * images.shape[1], [0.5] * images.shape[1]),
        ]
    )
    return DataLoader(PilImages(images, targets, transform), batch_size, shuffle=True, num_workers=workers)


def one_convolution(channels: int) -> nn.Module:
    """As small as a convolutional network gets."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


def cpu_seconds() -> float:
    """Of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def microseconds(batches: Callable[[], Batches], model: nn.Module | None, count: int) -> float:
    """CPU time per image of one pass, with training steps of `model`."""
    optimizer = None if model is None else torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    begin = cpu_seconds()
    for images, targets in batches():
        if model is None or optimizer is None:
            continue
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    return (cpu_seconds() - begin) / count * 1e6


def small_data(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 5
    section = Section(
        "Small images",
        "CPU microseconds per image (workers included; one thread) of one pass with random crop (padding 4) and "
        "mirroring: alone, and with training steps of two small networks (a convolution of 8 channels with a linear "
        "layer on its 4x4 pooled pixels; SmallCNN of width 8); the median of "
        f"{rounds} interleaved rounds (least to greatest). Goal: training on digits >= 10 times faster than with "
        "torchvision, and within 5 % of the same steps on one ready float tensor.",
        (
            "images", "what", "ready tensor", "app", "torchvision, 0 workers", "torchvision, 2 workers",
            "torchvision / app", "app / ready tensor",
        ),
    )  # fmt: skip
    torch.set_num_threads(1)
    for name, (channels, side, count, batch_size) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
        targets = torch.randint(0, 10, (count,), generator=generator)
        ready = [
            *zip(images.float().div(127.5).sub(1).split(batch_size), targets.split(batch_size), strict=True)
        ]  # made once
        feed = our_feed(images, targets, batch_size)
        sources: dict[str, Callable[[], Batches]] = {
            "ready": lambda ready=ready: ready,
            "ours": partial(our_batches, feed),
            "theirs": partial(their_loader, images, targets, batch_size, 0),
            "workers": partial(their_loader, images, targets, batch_size, 2),
        }
        networks = {
            "data only": None,
            "1 convolution": one_convolution(channels),
            "3 convolutions": SmallCNN(10, channels, 8),
        }
        for what, model in networks.items():
            times = interleaved(
                {key: partial(microseconds, source, model, count) for key, source in sources.items()}, rounds
            )
            section.rows.append(
                [
                    name,
                    what,
                    "-" if model is None else spread(times["ready"], digits=1),
                    *(spread(times[key], digits=1) for key in ("ours", "theirs", "workers")),
                    ratio(times["theirs"], times["ours"], 1),
                    "-" if model is None else ratio(times["ours"], times["ready"]),
                ]
            )
    return section
