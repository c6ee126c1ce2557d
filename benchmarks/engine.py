"""CPU time of one training iteration: the default experience against a hand-written loop.

The loop is that of PyTorch's tutorial (docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html): a
DataLoader over a TensorDataset, the optimizer as its constructor makes it, and the loss printed every 10 iterations.
Ours is `python -m app` as it is: the hooks of conf/hooks/default.yaml, a line every 10 iterations with loss, accuracy,
rate and times, a learning rate per step, a durable checkpoint per epoch, rows and a page by the local visualizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import process_time

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from app import rng
from app.models.mlp import MLP
from app.models.small_cnn import SmallCNN
from benchmarks.clock import Training, silently, train
from benchmarks.measure import Section, interleaved, ratio, spread

SEED = 3


@dataclass(frozen=True)
class Case:
    """One model and batch size on random images."""

    model: str
    batch_size: int
    optimizer: str
    side: int
    images: int

    @property
    def title(self) -> str:
        return f"{self.model} {self.side}x{self.side}, batch {self.batch_size}, {self.optimizer}"

    @property
    def overrides(self) -> list[str]:
        """The command line of this case."""
        model = {"mlp": ["model.hidden=[128]"], "small_cnn": ["model.width=8", "model.dropout=0"]}[self.model]
        optimizer = {"sgd": ["optim.lr=0.01"], "adamw": ["optim.lr=0.001"]}[self.optimizer]
        return [
            f"model={self.model}", *model, f"optim={self.optimizer}", *optimizer, "optim.weight_decay=0",
            "data=fake", f"data.size={self.images}", "data.val_size=250", f"data.image_size={self.side}",
            "data.channels=1", f"data.batch_size={self.batch_size}", "train.max_epochs=1",
            "env.device=cpu", "env.mp.num_threads=1", f"randomness.seed={SEED}", "schedule.warmup=0",
        ]  # fmt: skip

    def build(self) -> nn.Module:
        """The same model by hand."""
        if self.model == "mlp":
            return MLP(10, 1, self.side, hidden=(128,))
        return SmallCNN(10, 1, width=8, dropout=0.0)

    def optimize(self, model: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
        """The same optimizer, as its constructor makes it unless told otherwise."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        return torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.0, fused=fused)


class Order(Sampler[int]):
    """The order of the app's first epoch, drawn where RandomSampler draws its own."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(rng.order(self.size, SEED, 0).tolist())


def tutorial_loop(
    loader: DataLoader[tuple[torch.Tensor, ...]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """One epoch of the tutorial's training loop."""
    loss_of = nn.CrossEntropyLoss()
    size = len(loader.dataset)  # type: ignore[arg-type]
    model.train()
    for batch, (images, targets) in enumerate(loader):
        loss = loss_of(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch % 10 == 0:
            print(f"loss: {loss.item():>7f}  [{batch * len(images):>5d}/{size:>5d}]")


def bare_loop(
    batches: list[tuple[torch.Tensor, torch.Tensor]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Only what has to be computed, on batches made beforehand."""
    loss_of = nn.functional.cross_entropy
    model.train()
    for images, targets in batches:
        optimizer.zero_grad()
        loss_of(model(images), targets).backward()
        optimizer.step()


def cpu_seconds(work: Callable[[], object]) -> float:
    before = process_time()
    work()
    return process_time() - before


class Measured:
    """One case's contenders: CPU seconds of one iteration each."""

    def __init__(self, case: Case) -> None:
        self.case = case
        first = train(*case.overrides)  # warms up, too
        self.weights, self.tensors = initial(case, first)
        self.steps = -(-case.images // case.batch_size)

    def model(self) -> nn.Module:
        model = self.case.build()
        model.load_state_dict(self.weights)
        return model

    def loader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(*self.tensors), self.case.batch_size, sampler=Order(self.case.images))

    def by_hand(self) -> float:
        model, loader = self.model(), self.loader()
        optimizer = self.case.optimize(model)
        return cpu_seconds(lambda: silently(lambda: tutorial_loop(loader, model, optimizer))) / self.steps

    def bare(self) -> float:
        model = self.model()
        optimizer = self.case.optimize(model, fused=True)
        batches = [(images, targets) for images, targets in self.loader()]
        return cpu_seconds(lambda: bare_loop(batches, model, optimizer)) / self.steps

    def ours(self) -> float:
        training = train(*self.case.overrides)
        return training.cpu_seconds / training.steps


def initial(case: Case, first: Training) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The weights that the app starts from, and its normalised images and targets in the order of the data set."""
    from app.build import seed_building

    seed_building(SEED)
    weights = copy.deepcopy(case.build().state_dict())
    assert first.run is not None
    feed = first.run.data
    images, targets, indices = [], [], []
    for step in feed.train(0, 0):
        for batch in step.micros:
            images.append(batch.images)
            targets.append(batch.targets)
            indices.append(batch.indices)
    back = torch.cat(indices).argsort()
    return weights, (torch.cat(images)[back], torch.cat(targets)[back])
