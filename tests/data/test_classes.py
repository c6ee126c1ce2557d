"""Class names of a checkpoint against those of the data, by the real command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from invocation import Outcome, Terminal
from PIL import Image

from app.data.classes import in_order_of
from app.data.source import ImageTensor, Splits

COLORS = {"cat": (220, 30, 30), "dog": (30, 220, 30), "owl": (30, 30, 220)}
PHOTOS = ("data=folder", "data.root=photos", "data.image_size=8", "data.batch_size=6", "model=mlp", "schedule.warmup=0")
OWN = """
import torch

class Blobs(torch.utils.data.Dataset):
    def __init__(self, split, classes):
        self.classes = list(classes)
        self.names = [name for name in ("cat", "dog", "owl") if name in classes] * 12

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        image = torch.full((3, 8, 8), 20, dtype=torch.uint8)
        image[("cat", "dog", "owl").index(name)] = 200 + index
        return image, self.classes.index(name)
"""


def photos(root: Path, classes: tuple[str, ...], per_class: int = 6) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, color in COLORS.items():
            if name in classes:
                (root / part / name).mkdir(parents=True)
                for index in range(per_class):
                    pixels = np.full((8, 8, 3), color) + random.integers(-25, 25, (8, 8, 3))
                    Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{index}.png")


def top1(outcome: Outcome) -> float:
    assert outcome.code == 0, outcome.message
    return float(re.findall(r"(?:val|test)/top1 (\d\.\d+)", outcome.message)[-1])


@pytest.fixture
def trained(terminal: Terminal, one_thread: None) -> Path:
    photos(terminal.folder / "photos", ("cat", "dog", "owl"))
    outcome = terminal.run(*PHOTOS, "train.max_epochs=6", "optim=sgd", "optim.lr=0.1", "hydra.run.dir=run")
    assert top1(outcome) == 1.0
    return terminal.folder / "run" / "checkpoints" / "best.pth"


def rename(terminal: Terminal, old: str, new: str) -> None:
    for part in ("train", "val"):
        folder = terminal.folder / "photos" / part
        (folder / old).rename(folder / new)


def test_a_renamed_class_is_refused_with_both_lists(terminal: Terminal, trained: Path) -> None:
    rename(terminal, "cat", "zcat")
    both = r"cat, dog, owl \| dog, owl, zcat"
    tested = terminal.run(*PHOTOS, "mode=test", f"load_from={trained}")
    assert tested.code == 66
    tested.says(both)
    resumed = terminal.run(*PHOTOS, "train.max_epochs=7", "hydra.run.dir=run", "resume=true")
    assert resumed.code == 66
    resumed.says(both)
    tuned = terminal.run(*PHOTOS, "train.max_epochs=1", f"load_from={trained}", "hydra.run.dir=tuned")
    assert tuned.code == 0
    tuned.says(rf"loaded 4 of 4 entries; it is of a run .*{both}.*: the last layer's outputs meant the former")
    tuned = terminal.run(*PHOTOS, "train.max_epochs=1", f"model.init.checkpoint={trained}", "hydra.run.dir=init")
    tuned.says(rf"model.init.checkpoint=.*: loaded 4 of 4 entries; it is of a run .*{both}")


def test_a_class_that_is_missing_is_evaluated_with_the_model_s_classes(terminal: Terminal, trained: Path) -> None:
    for part in ("train", "val"):
        (terminal.folder / "photos" / part / "cat").rename(terminal.folder / f"away_{part}")
    tested = terminal.run(*PHOTOS, "mode=test", f"load_from={trained}")
    assert top1(tested) == 1.0
    tested.says(r"no samples of 1 of the checkpoint's 3 classes \(cat\)")
    resumed = terminal.run(*PHOTOS, "train.max_epochs=7", "hydra.run.dir=run", "resume=true")
    assert resumed.code == 66
    resumed.says("a run with 3 classes, data has 2")


def test_the_same_classes_in_another_order_are_mapped(terminal: Terminal, one_thread: None) -> None:
    terminal.write({"blobs_in_order.py": OWN})
    own = ("data=custom", "data._target_=blobs_in_order.Blobs", *PHOTOS[3:], "optim=sgd", "optim.lr=0.1")
    before, after = "+data.classes=[cat,dog,owl]", "+data.classes=[owl,cat,dog]"
    first = terminal.run(*own, before, "train.max_epochs=6", "hydra.run.dir=run")
    assert top1(first) == 1.0
    best = "run/checkpoints/best.pth"
    tested = terminal.run(*own, after, "mode=test", f"load_from={best}")
    assert top1(tested) == 1.0
    tested.says("classes in the checkpoint's order")
    tuned = terminal.run(*own, after, "train.max_epochs=1", f"load_from={best}", "optim.lr=1e-9", "hydra.run.dir=b")
    assert top1(tuned) == 1.0
    resumed = terminal.run(*own, after, "train.max_epochs=7", "hydra.run.dir=run", "resume=true")
    assert top1(resumed) == 1.0


def test_other_parts_of_the_file_zoo_are_refused_in_test(terminal: Terminal, trained: Path) -> None:
    """The file's model has another head, or the file only some of the entries: never a number without a meaning."""
    content = torch.load(trained, weights_only=True)
    some = dict(list(content["model"].items())[:1])
    torch.save(some, terminal.folder / "some.pth")
    torch.save(content["model"] | {"3.weight": torch.zeros(7, 128), "3.bias": torch.zeros(7)}, "head.pth")
    torch.save(content | {"model": some}, "ours.pth")
    for name, missing in (
        ("some", "3 missing: 1.bias"),
        ("ours", "3 missing"),
        ("head", "2 of another shape: 3.weight"),
    ):
        tested = terminal.run(*PHOTOS, "mode=test", f"load_from={name}.pth")
        assert tested.code == 66, name
        tested.says(rf"load_from={name}.pth does not hold the weights of MLP.*{missing}")
        assert "test/top1" not in tested.out
    tuned = terminal.run(*PHOTOS, "train.max_epochs=1", "load_from=some.pth", "hydra.run.dir=tuned")
    assert tuned.code == 0
    tuned.says(r"loaded 1 of 4 entries; 3 missing: 1.bias")


def test_labels_follow_their_names() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    splits = Splits(*[ImageTensor(images, torch.tensor([0, 1, 1]))] * 2, classes=["b", "a"])
    mapped = in_order_of(splits, ["a", "b"])
    assert mapped.train.targets.tolist() == [1, 0, 0]  # type: ignore[union-attr]
    assert in_order_of(splits, ["a", "b", "c"]) is splits
    assert in_order_of(splits, ["a", "b", "c"], partial=True).classes == ["a", "b", "c"]
    assert in_order_of(splits, ["a", "c"], partial=True) is splits
    many = Splits(*[ImageTensor(images, torch.tensor([[1.0, 0], [0, 1], [1, 1]]))] * 2, classes=["b", "a"])
    mapped = in_order_of(many, ["a", "c", "b"], partial=True)
    assert mapped.val.targets.tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 1]]  # type: ignore[union-attr]
