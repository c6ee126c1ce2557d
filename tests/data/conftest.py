"""Feeds built from the schema's defaults, as the command line would."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.config.schema.data import DataConf
from app.core.ranks import World
from app.data.feed import Feed
from app.data.source import ImageTensor, Splits

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def feed_of() -> Iterator[Callable[..., Feed]]:
    """A function (splits, rank, world, accumulate, seed, **keys of DataConf) -> Feed; closes them in the end."""
    feeds: list[Feed] = []
    defaults = {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(DataConf)
    }

    def make(splits: Splits, rank: int = 0, world: int = 1, accumulate: int = 1, seed: int = 0, **keys: Any) -> Feed:
        place = World(torch.device("cpu"), rank=rank, size=world)
        feed = Feed(splits, {**defaults, **keys}, world=place, seed=seed, accumulate=accumulate)
        feeds.append(feed)
        return feed

    yield make
    for feed in feeds:
        feed.close()


@pytest.fixture
def small() -> Splits:
    """50 training and 23 validation images of 12x12 pixels in 3 classes; every image is another."""
    generator = torch.Generator().manual_seed(1)

    def part(count: int) -> ImageTensor:
        images = torch.randint(0, 256, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
        return ImageTensor(images, torch.arange(count) % 3)

    return Splits(part(50), part(23), ["a", "b", "c"])


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data in {SHARED}")
    return SHARED
