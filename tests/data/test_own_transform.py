"""A transform of one's own, from outside, by the real command."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from invocation import Terminal

from app.checkpoint import contents

MINE = """
import torch


class Noise:
    def __init__(self, strength=1):
        self.strength = strength

    def __call__(self, image):
        assert image.dtype == torch.uint8 and image.ndim == 3
        noise = torch.randint(0, self.strength + 1, image.shape, dtype=torch.uint8)
        return (image // 2 + noise).clamp(0, 255).to(torch.uint8)


class Floats(Noise):
    def __call__(self, image):
        return image / 255


class Pale:
    def __init__(self, by):
        self.by = by

    def __call__(self, image):
        return image // self.by
"""
TINY = [
    *("data.limit_train=128", "data.limit_val=32", "train.max_epochs=2", "randomness.seed=1", "env.device=cpu"),
    *("logging.progress=false", "hydra.run.dir=run"),
]


@pytest.fixture
def at_home(terminal: Terminal, one_thread: None) -> Terminal:
    """A folder with the user's module."""
    terminal.write({"own_transforms.py": MINE})
    terminal.monkeypatch.delitem(sys.modules, "own_transforms", raising=False)  # another test's, from its own folder
    return terminal


def weights(terminal: Terminal, name: str, *overrides: str) -> dict[str, Any]:
    outcome = terminal.run(*TINY[:-1], f"hydra.run.dir={name}", *overrides)
    assert outcome.code == 0, outcome.message
    state: dict[str, Any] = contents.load(Path(terminal.folder, name, "checkpoints", "epoch_2.pth"))["model"]
    return state


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_it_is_a_function_of_seed_epoch_and_sample(at_home: Terminal) -> None:
    noise = "data.augment={flip: {}, mine: {_target_: own_transforms.Noise, strength: 9}}"
    held = weights(at_home, "held", noise)
    for workers in (0, 2):
        read = weights(at_home, f"read{workers}", noise, "data.in_memory=false", f"data.num_workers={workers}")
        assert equal(held, read), f"{workers} workers"
    assert not equal(held, weights(at_home, "flip", "data.augment=[flip]"))
    assert not equal(held, weights(at_home, "stronger", noise.replace("9", "90")))


@pytest.mark.parametrize(
    ("augment", "code", "patterns"),
    [
        ("mine: {_target_: own_transforms.Nose}", 64, [r"data\.augment\.mine", "Nose", "Noise"]),
        ("mine: {_target_: own_transforms.Noise, power: 3}", 64, [r"data\.augment\.mine.*power", "strength"]),
        ("mine: {_target_: os.system}", 64, [r"data\.augment\.mine\._target_: os\.system is not trusted"]),
        (
            "mine: {_target_: own_transforms.Floats}",
            64,
            [r"data\.augment: transforms must give back uint8 images of one size, got torch\.float32 \(1, 8, 8\)"],
        ),
        ("mine: {strength: 3}", 64, [r"data\.augment: unknown augmentation 'mine'"]),
    ],
)
def test_a_wrong_one_is_refused_before_training(
    at_home: Terminal, augment: str, code: int, patterns: list[str]
) -> None:
    outcome = at_home.run(f"data.augment={{{augment}}}", *TINY)
    outcome.says(*patterns)
    assert outcome.code == code
    assert not list(at_home.folder.glob("run/checkpoints/*.pth"))


def test_under_a_name_of_ours_it_takes_its_place(at_home: Terminal) -> None:
    pale = "crop: {_target_: own_transforms.Pale, by: 2}"
    assert equal(
        weights(at_home, "first", f"data.augment={{{pale}, erase: {{}}}}"),
        weights(at_home, "second", f"data.augment={{erase: {{}}, {pale}}}", "data.in_memory=false"),
    )


def test_its_key_may_be_added_to_those_of_an_experiment(at_home: Terminal) -> None:
    outcome = at_home.run("data.augment={flip: {}}", "+data.augment.mine={_target_: own_transforms.Noise}", *TINY)
    assert outcome.code == 0, outcome.message
