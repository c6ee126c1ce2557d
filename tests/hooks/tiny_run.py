"""A run small enough to build by hand: real objects, no command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from app.core.hook import Hook
from app.core.ranks import World
from app.core.rng import order, uniforms
from app.core.state import Batch, Run, StepBatch, TrainState
from app.engine.loop import fit
from app.metrics.losses import cross_entropy

CLASSES = ("a", "b", "c")


class Feed:
    """Twelve 6x6 images in steps of 4, in the order of the epoch; `fill` lets a test spoil a sample."""

    classes: Sequence[str] = CLASSES
    channels, image_size, steps_per_epoch, train_size, multi_label = 1, 6, 3, 12, False

    def __init__(self, world: World, channels: int = 1) -> None:
        self.world, self.channels = world, channels
        self.images = uniforms(0, 0, torch.arange(12), channels * 36, "image").view(12, channels, 6, 6)
        self.targets = torch.arange(12) % 3
        self.images += self.targets[:, None, None, None]
        self.recipes: list[tuple[Any, Any]] = []

    def train(self, epoch: int, start: int) -> Iterator[StepBatch]:
        for batch in order(12, 7, epoch).split(4)[start:]:
            yield StepBatch([self._batch(batch[self.world.rank :: self.world.size])], 4)

    def evaluate(self, split: str) -> Iterator[Batch | None]:
        yield self._batch(torch.arange(12))

    def eval_size(self, split: str) -> int:
        return 12

    def set_recipe(self, augment: Any, batch_augment: Any) -> None:
        self.recipes.append((augment, batch_augment))

    def _batch(self, indices: torch.Tensor) -> Batch:
        return Batch(self.images[indices], self.targets[indices], indices, len(indices))


class MeanLoss:
    """Metrics of one number, so that two sets of weights are told apart by it."""

    def start(self, size: int) -> None:
        self.losses: list[torch.Tensor] = []

    def update(self, logits: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor) -> None:
        self.losses.append(nn.functional.cross_entropy(logits, targets))

    def compute(self, world: World) -> SimpleNamespace:
        return SimpleNamespace(metrics={"loss": float(torch.stack(self.losses).mean())})


class Tables:
    """A visualizer that keeps what it is given."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, Sequence[str], Sequence[Sequence[object]], int]] = []

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self.tables.append((name, columns, rows, step))


def network(channels: int = 1, classes: int = 3) -> nn.Module:
    """A convolution, a batch norm, dropout and a classifier, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(4, classes),
        )


def tiny_run(folder: Path, world: World | None = None, model: nn.Module | None = None, **fields: Any) -> Run:
    """Three epochs of three steps of SGD; `fields` replace those of Run."""
    world = world or World(torch.device("cpu"))
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    loss = {"_target_": "app.metrics.losses.cross_entropy", "label_smoothing": 0.0}
    values: dict[str, Any] = {
        "config": {"data": {"_target_": "tests.feed", "augment": ["crop"], "batch_augment": None}, "loss": loss},
        "folder": folder,
        "world": world,
        "state": TrainState(model, model, optimizer, None),
        "data": Feed(world),
        "metrics": MeanLoss(),
        "schedule": SimpleNamespace(factor=lambda position: 1.0),
        "visualizer": Tables(),
        "loss": nn.functional.cross_entropy,
        "make_loss": lambda conf: cross_entropy(conf["label_smoothing"]),
        "monitored": {"val/top1": "greater", "val/loss": "less"},
        "seed": 1,
        "rank_seed": 1,
        "by_epoch": True,
        "length": 3,
    }
    return Run(**(values | fields))


def make(conf: Any) -> Any:
    """The hook of a schema dataclass, made as app.build makes it."""
    settings = asdict(conf)
    target, priority = settings.pop("_target_"), settings.pop("priority")
    hook: Hook = get_class(target)(**settings)
    hook.priority = priority
    return hook


def train(run: Run, hooks: dict[str, Hook], attach: bool = True) -> None:
    """`fit` with these hooks."""
    run.hooks = hooks
    if attach:
        for hook in hooks.values():
            hook.attach(run)
    restore = next((hook.restore for hook in hooks.values() if hasattr(hook, "restore")), lambda run: False)
    fit(run, val_interval=1, val_begin=1, clip_norm=None, autocast=nullcontext, rollback=lambda: restore(run))


class Recorder(Hook):
    """Keeps what a test wants to look at: `look(run)` at a hook point."""

    priority = 95

    def __init__(self, point: str, look: Any) -> None:
        self.seen: list[Any] = []
        self.point, self.look = point, look

    def step_end(self, run: Run, step: Any) -> None:
        if self.point == "step_end":
            self.seen.append(self.look(run))

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        if self.point == "eval_end":
            self.seen.append(self.look(run))

    def commit(self, run: Run) -> None:
        if self.point == "commit":
            self.seen.append(self.look(run))
