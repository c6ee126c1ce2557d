"""One data set, one result: memory, cache and loader give the same pixels and labels to the bit, or refuse by name."""

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.config.schema.data import AUGMENTS
from app.core.state import Batch
from app.data.feed import Feed
from app.data.folder import folder
from app.data.source import ImageTensor, Splits, read_splits
from app.errors import ConfigError, DataError

FeedOf = Callable[..., Feed]
RECIPES: list[Any] = [
    None,
    *([name] for name in AUGMENTS),
    ["crop", "flip", "RandomGrayscale", "erase"],
    list(AUGMENTS),
]
PLACEMENTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "memory": (False, {"in_memory": True}),
    "cache": (True, {}),
    "loader": (False, {"in_memory": False}),
    "loader, 1 worker": (False, {"in_memory": False, "num_workers": 1}),
}
"""Name -> data.cache and keys."""


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four JPEG photographs of each of two classes to train, and two of each to validate."""
    source = Path(__file__).parents[2].parent / "shared/data/flowers5/flowers5.tar"
    if not source.exists():
        pytest.skip(f"no real data in {source}")
    root, counts = tmp_path_factory.mktemp("flowers"), {"train": 4, "val": 2}
    taken: dict[tuple[str, str], int] = {}
    with tarfile.open(source) as tar:
        for member in tar:
            *_, part, name, file = ("", "", *member.name.split("/"))
            number = taken.get((part, name), 0)
            if name in ("daisy", "roses") and member.isfile() and number < counts.get(part, 0):
                stream = tar.extractfile(member)
                assert stream is not None
                place = root / part / name / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(stream.read())
                taken[part, name] = number + 1
    assert sum(taken.values()) == 12
    return root


@pytest.fixture(params=["whole", "first of a class", "last of all"])
def damaged(request: pytest.FixtureRequest, flowers: Path, tmp_path: Path) -> Path:
    """The photographs, in each part one of them cut short."""
    for path in flowers.rglob("*.jpg"):
        copy = tmp_path / "data" / path.relative_to(flowers)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for part in ("train", "val") if request.param != "whole" else ():
        files = sorted((tmp_path / "data" / part / "roses").iterdir())
        file = files[0 if request.param == "first of a class" else -1]
        file.write_bytes(file.read_bytes()[:2000])
    return tmp_path / "data"


def everything(feed: Feed) -> list[Batch]:
    """Two epochs of training with an evaluation between them, and what the pictures of a page are drawn from."""
    batches: list[Batch] = []
    for epoch in (0, 1):
        batches += itertools.chain.from_iterable(step.micros for step in feed.train(epoch, 0))
        batches += [batch for batch in feed.evaluate("val") if batch is not None]
    indices = list(range(feed.eval_size("val")))
    shown = feed.sample_images("val", indices)
    return [*batches, Batch(shown, torch.empty(0), torch.tensor(indices), len(indices))]


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for name in ("images", "targets", "indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.size == other.size


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "+".join(recipe or ["none"]))
def test_files(damaged: Path, recipe: Any, feed_of: FeedOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for name, (cache, keys) in PLACEMENTS.items():
        keys = {"image_size": 32, "on_error": "skip", "augment": recipe, "batch_size": 3, "eval_batch_size": 3, **keys}
        if "resized_crop" in (recipe or ()) and not name.startswith("loader"):
            held = "cache" if cache else "in_memory"
            with pytest.raises(ConfigError, match=rf"data\.{held}=true holds .*, but data\.augment\.resized_crop cuts"):
                feed_of(folder(str(damaged), cache=cache), **keys)
            continue
        for _ in range(1 + cache):  # a cache also when it is there already
            found[name] = everything(feed_of(folder(str(damaged), cache=cache), **keys))
    for batches in found.values():
        assert_equal(batches, found["loader"])


@pytest.mark.parametrize("image_size", [None, 9, 20])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "+".join(recipe or ["none"]))
def test_tensors(recipe: Any, image_size: int | None, feed_of: FeedOf) -> None:
    images = torch.randint(0, 256, (14, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = Splits(ImageTensor(images[:8], torch.arange(8) % 2), ImageTensor(images[8:], torch.arange(6) % 2), "ab")
    found = {
        name: everything(feed_of(splits, image_size=image_size, augment=recipe, batch_size=3, **keys))
        for name, (cache, keys) in PLACEMENTS.items()
        if not cache
    }
    for batches in found.values():
        assert_equal(batches, found["loader"])


def test_auto_reads_files_for_a_crop_and_holds_them_otherwise(feed_of: FeedOf, flowers: Path, tmp_path: Path) -> None:
    """Also when another recipe comes into force: small pictures are held, unless it crops whole ones."""
    from PIL import Image

    for path in flowers.rglob("*.jpg"):
        copy = tmp_path / path.relative_to(flowers)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((40, 40)).save(copy)
    keys = {"image_size": 40, "augment": ["flip"], "batch_size": 3}
    feed = feed_of(folder(str(tmp_path)), **keys)
    read = feed_of(folder(str(tmp_path)), in_memory=False, **keys)
    assert feed.placement == "images held on cpu"
    for recipe in (["flip"], ["resized_crop"], ["flip"]):
        feed.set_recipe(recipe, None)
        read.set_recipe(recipe, None)
        assert feed.placement == ("images read by this process" if recipe == ["resized_crop"] else "images held on cpu")
        assert_equal(everything(feed), everything(read))


class Augmented:
    """A data set that augments by itself."""

    classes = ("a", "b")

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8), index % 2


def test_a_data_set_that_augments_by_itself_is_not_held(feed_of: FeedOf) -> None:
    splits = read_splits(Augmented, {"split"})
    with pytest.raises(DataError, match=r"in_memory=true: sample 0 of Augmented is another image in every epoch"):
        next(feed_of(splits, in_memory=True).train(0, 0))
    assert_equal(everything(feed_of(splits)), everything(feed_of(splits, in_memory=False, num_workers=1)))


def test_a_damaged_cache_is_made_anew(
    flowers: Path, feed_of: FeedOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def cached() -> list[Batch]:
        return everything(feed_of(folder(str(flowers), cache=True), image_size=32))

    expected = cached()
    caches = sorted((tmp_path / "outputs/.cache").iterdir())
    assert len(caches) == 2
    for cache, name in itertools.product(caches, ("images.npy", "targets.npy", "skipped.json")):
        content = (cache / name).read_bytes()
        for damage in (b"", content[: len(content) // 2]):
            (cache / name).write_bytes(damage)
            assert_equal(cached(), expected)
            assert (cache / name).read_bytes() == content
        (cache / name).unlink()
        assert_equal(cached(), expected)
    assert sorted((tmp_path / "outputs/.cache").iterdir()) == caches
