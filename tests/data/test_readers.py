"""digits, fake, the torchvision sets, and data sets of one's own."""

import gzip
import hashlib
import pickle
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.data.digits import digits
from app.data.fake import fake
from app.data.feed import Feed
from app.data.source import ImageTensor, Splits, read_splits
from app.data.torchvision_sets import torchvision_set
from app.errors import DataError

FeedOf = Callable[..., Feed]


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    splits = digits(0.2)
    assert isinstance(splits.train, ImageTensor)
    assert isinstance(splits.val, ImageTensor)
    ours = torch.cat([splits.train.images, splits.val.images]).view(-1, 64)
    expected = torch.from_numpy(np.round(theirs.data * 255 / 16)).to(torch.uint8)
    assert (len(splits.train), len(splits.val)) == (1438, 359)
    assert ours.sort(0).values.int().sub(expected.sort(0).values.int()).abs().max() <= 1
    counts = splits.val.targets.bincount() / torch.from_numpy(theirs.target).bincount()
    assert ((counts - 0.2).abs() < 0.005).all()
    assert torch.equal(digits(0.2).val.images, splits.val.images)  # type: ignore[union-attr]


def test_the_default_data_set_imports_nothing_heavy() -> None:
    code = (
        "import sys, app.data.feed, app.data.digits; app.data.digits.digits();"
        "print([name for name in ('sklearn', 'PIL', 'torchvision') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_fake_is_the_same_every_time() -> None:
    first, second = fake(size=20, val_size=5), fake(size=20, val_size=5)
    assert isinstance(first.train, ImageTensor)
    assert torch.equal(first.train.images, second.train.images)  # type: ignore[union-attr]
    assert first.train.images.shape == (20, 3, 32, 32)


def write_mnist(root: Path, packed: bool, name: str = "MNIST") -> torch.Tensor:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images = torch.randint(0, 256, (12, 28, 28), dtype=torch.uint8)
    for stem, part in (("train", images[:8]), ("t10k", images[8:])):
        count = len(part).to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        files = {
            f"{stem}-images-idx3-ubyte": b"\0\0\x08\x03" + count + side + side + part.numpy().tobytes(),
            f"{stem}-labels-idx1-ubyte": b"\0\0\x08\x01" + count + bytes(range(len(part))),
        }
        for file, content in files.items():
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / file).write_bytes(content)
    return images


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_without_writing(tmp_path: Path, packed: bool) -> None:
    images = write_mnist(tmp_path, packed)
    before = sorted(tmp_path.rglob("*"))
    splits = torchvision_set("MNIST", str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert isinstance(splits.train, ImageTensor)
    assert isinstance(splits.val, ImageTensor)
    assert torch.equal(splits.train.images[:, 0], images[:8])
    assert splits.val.targets.tolist() == [0, 1, 2, 3]


def test_missing_mnist(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        torchvision_set("KMNIST", str(tmp_path))
    path = tmp_path / "KMNIST/raw/train-images-idx3-ubyte"
    assert str(caught.value) == (
        f"data.root: KMNIST is not complete: {path} does not exist. Expected: KMNIST/raw/*-images-idx3-ubyte and "
        "*-labels-idx1-ubyte, for train and t10k, or .gz of them. Point data.root at the folder that holds it, or "
        "fetch it with data.download=true"
    )


def test_damaged_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is not a whole idx file .* holds 3151 bytes"):
        torchvision_set("MNIST", str(tmp_path))
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*ubyte.gz \(\d+ bytes\)"):
        torchvision_set("MNIST", str(tmp_path))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_real_files_are_what_torchvision_reads(shared_data: Path, tmp_path: Path, name: str) -> None:
    from torchvision import datasets

    splits = torchvision_set(name, str(shared_data))
    folder = tmp_path / name / "raw"
    folder.mkdir(parents=True)
    for file in (shared_data / name / "raw").glob("*.gz"):
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs = getattr(datasets, name)(str(tmp_path), train=False)
    assert isinstance(splits.val, ImageTensor)
    assert torch.equal(splits.val.images[:, 0], theirs.data)
    assert torch.equal(splits.val.targets, theirs.targets)
    assert len(splits.train) == 60_000


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """CIFAR-10's five and one files with 4 images each; torchvision's list of MD5 sums is made to fit them."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3072), dtype=np.uint8)
    sums = {}
    for i, (name, _) in enumerate([*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]):
        content = pickle.dumps({"data": pixels[4 * i : 4 * i + 4], "labels": [0, 1, 2, 9]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": [f"name {i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    for attribute in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(datasets.CIFAR10, attribute)]
        monkeypatch.setattr(datasets.CIFAR10, attribute, listed)
    known = {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", known)
    return pixels


@pytest.mark.parametrize("packed", [False, True])
def test_cifar(tmp_path: Path, cifar: np.ndarray[Any, Any], packed: bool) -> None:
    if packed:
        folder = tmp_path / "cifar-10-batches-py"
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(folder, folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    splits = torchvision_set("CIFAR10", str(tmp_path))
    assert isinstance(splits.train, ImageTensor)
    assert isinstance(splits.val, ImageTensor)
    assert torch.equal(splits.train.images, torch.from_numpy(cifar[:20].reshape(-1, 3, 32, 32)))
    assert splits.val.targets.tolist() == [0, 1, 2, 9]
    assert splits.classes[3] == "name 3"


def test_cifar_runs_no_unknown_pickle(tmp_path: Path, cifar: np.ndarray[Any, Any]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match="data_batch_1 is damaged or not the original: MD5"):
        torchvision_set("CIFAR10", str(tmp_path))
    assert not (tmp_path / "ran").exists()


class OwnData:
    """A data set as a user writes one."""

    classes = ("cat", "dog")

    def __init__(self, split: str, size: int = 10, broken: int = -1) -> None:
        self.size = size if split == "train" else 4
        self.broken = broken if split == "train" else -1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == self.broken:
            raise KeyError("missing annotation")
        return Image.new("RGB", (9, 7), (index, 0, 0)), index % 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_own_data_set(feed_of: FeedOf, num_workers: int) -> None:
    splits = read_splits(OwnData, {"split", "size", "broken"})
    feed = feed_of(splits, num_workers=num_workers, mean=[0.0], std=[1 / 255], augment=["flip"])
    assert (feed.train_size, feed.eval_size("val"), list(feed.classes)) == (10, 4, ["cat", "dog"])
    batch = next(iter(feed.evaluate("val")))
    assert batch is not None
    assert batch.images.shape == (4, 3, 7, 9)
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert batch.targets.tolist() == [0, 1, 0, 1]
    train = next(iter(feed.train(0, 0))).micros[0]
    assert torch.equal(train.images[:, 0, 0, 0].long(), train.indices)


class Drawing(OwnData):
    """Its own augmentation draws from every global generator."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        draws = [torch.rand(()).item(), random.random(), np.random.rand()]
        return torch.tensor(draws).view(3, 1, 1), index % 2


def test_own_random_numbers_are_functions_of_seed_epoch_and_index(feed_of: FeedOf) -> None:
    splits = read_splits(Drawing, {"split"})
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = []
    for num_workers, batch_size in ((0, 10), (2, 3)):
        feed = feed_of(splits, num_workers=num_workers, batch_size=batch_size)
        micros = [step.micros[0] for epoch in (0, 1) for step in feed.train(epoch, 0)]
        order = torch.cat([micro.indices for micro in micros]).view(2, 10).argsort(1)
        images = torch.cat([micro.images for micro in micros]).view(2, 10, 3)
        runs.append(torch.stack([images[0][order[0]], images[1][order[1]]]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert len(runs[0].unique()) == 60
    assert torch.equal(torch.get_rng_state(), state), "reading left its mark on the global generator"


def test_own_data_set_of_floats_is_taken_as_it_is(feed_of: FeedOf) -> None:
    class Floats(OwnData):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.full((1, 4, 4), index / 2), 1

    splits = read_splits(lambda: {"train": Floats("train"), "val": Floats("val")}, ())
    feed = feed_of(splits, augment=["flip"])
    batch = next(iter(feed.evaluate("val")))
    assert batch is not None
    assert batch.images[:, 0, 0, 0].tolist() == [0, 0.5, 1, 1.5]
    assert feed.sample_images("val", [1]).dtype == torch.uint8


@pytest.mark.parametrize("num_workers", [0, 1])
def test_own_data_set_that_raises(feed_of: FeedOf, num_workers: int) -> None:
    splits = read_splits(lambda split: OwnData(split, broken=3), {"split"})
    feed = feed_of(splits, num_workers=num_workers, batch_size=5, shuffle=False)
    with pytest.raises(DataError) as caught:
        list(feed.train(0, 0))
    assert str(caught.value) == (
        "data: sample 3 of OwnData raised KeyError: 'missing annotation'; set data.on_error=skip to go on without it"
    )
    assert "__getitem__" in caught.value.__notes__[0]


def test_own_data_set_with_wrong_targets(feed_of: FeedOf) -> None:
    class Wrong(OwnData):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return super().__getitem__(index)[0], index

    splits = read_splits(lambda split: Wrong(split), {"split"})
    with pytest.raises(DataError, match=r"sample \d of Wrong has target \d; expected a class index from 0 to 1, or"):
        list(feed_of(splits).train(0, 0))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (7, "data._target_ must give back Splits, .*, got int"),
        ({"train": OwnData("train")}, "data._target_ must give back Splits, .*, got dict"),
        ({"train": OwnData("train"), "val": 3}, "the val part must have __len__ and __getitem__, got int"),
        ({"train": [1], "val": [2]}, "list must have an attribute `classes`"),
    ],
)
def test_what_is_no_data_set_is_refused(made: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_splits(lambda: made, ())


def test_own_splits_with_other_classes_are_refused() -> None:
    class Val(OwnData):
        classes = ("cat", "fox")

    with pytest.raises(DataError) as caught:
        read_splits(lambda: {"train": OwnData("train"), "val": Val("val")}, ())
    assert str(caught.value) == (
        "data: train has 2 classes and val has 2, and they differ: only in train: dog; only in val: fox"
    )


def test_splits_pass_through(small: Splits) -> None:
    assert read_splits(lambda: small, ()) is small
