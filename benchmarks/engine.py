"""CPU time of one training iteration: the default experience against a hand-written loop.

The loop is that of PyTorch's tutorial (docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html): a
DataLoader over a TensorDataset, the optimizer as its constructor makes it, and the loss printed every 10 iterations.
Ours is `python -m app` as it is: the hooks of conf/hooks/default.yaml, a line every 10 iterations with loss, accuracy,
rate and times, a learning rate per step, a durable checkpoint per epoch, rows and a page by the local visualizer.
"""

from __future__ import annotations

import copy
import cProfile
import functools
import pstats
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import process_time

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from app import job as run_module
from app.core import rng
from app.models.mlp import MLP
from app.models.small_cnn import SmallCNN
from benchmarks.clock import Training, silently, train
from benchmarks.measure import Section, interleaved, ratio, spread
from benchmarks.peers import PEER_NOTE, PEERS, peer_titles

SEED = 3


@dataclass(frozen=True)
class Case:
    """One model and batch size on random images."""

    model: str
    batch_size: int
    optimizer: str
    side: int
    steps: int = 640

    @property
    def images(self) -> int:
        """Of the one epoch."""
        return self.steps * self.batch_size

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

    def model(self) -> nn.Module:
        model = self.case.build()
        model.load_state_dict(self.weights)
        return model

    def loader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(*self.tensors), self.case.batch_size, sampler=Order(self.case.images))

    def by_hand(self) -> float:
        model, loader = self.model(), self.loader()
        optimizer = self.case.optimize(model)
        return cpu_seconds(lambda: silently(lambda: tutorial_loop(loader, model, optimizer))) / self.case.steps

    def bare(self) -> float:
        model = self.model()
        optimizer = self.case.optimize(model, fused=True)
        batches = [(images, targets) for images, targets in self.loader()]
        return cpu_seconds(lambda: bare_loop(batches, model, optimizer)) / self.case.steps

    def peer(self, name: str) -> float:
        return PEERS[name](self.loader(), self.model())

    def ours(self) -> float:
        training = train(*self.case.overrides)
        return training.cpu_seconds / training.steps


def initial(case: Case, first: Training) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The weights that the app starts from, and its normalised images and targets in the order of the data set."""
    from app.core.rng import seed_building

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


CASES = (
    Case("mlp", 32, "sgd", 28),
    Case("mlp", 64, "sgd", 28),
    Case("mlp", 128, "sgd", 28),
    Case("mlp", 64, "adamw", 28),
    Case("small_cnn", 32, "sgd", 8),
    Case("small_cnn", 128, "sgd", 8),
)


def engine(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 5
    torch.set_num_threads(1)
    section = Section(
        "Engine",
        "CPU microseconds of one training iteration (all threads of the process, torch on one thread), the median of "
        f"{rounds} interleaved rounds (least to greatest), 640 iterations each, one epoch with its checkpoint. *By "
        "hand*: the loop of PyTorch's tutorial with DataLoader and TensorDataset, the loss printed every 10 "
        "iterations, no schedule, no checkpoint. *App*: `python -m app` with everything that is on by default. "
        "*Computation only*: forward, loss, backward and a fused step on batches made beforehand. Evaluations are "
        "in none of them. Goal: app / by hand <= 1.0.",
        ("case", "by hand", "app", "app / by hand", "computation only", *peer_titles(), "final weights"),
    )
    for case in CASES[1:2] if quick else CASES:
        measured = Measured(case)
        contenders = {"hand": measured.by_hand, "ours": measured.ours, "bare": measured.bare}
        contenders |= {name: functools.partial(measured.peer, name) for name in PEERS}
        times = interleaved(contenders, rounds)
        section.rows.append(
            [
                case.title,
                spread(times["hand"], 1e6, 0),
                spread(times["ours"], 1e6, 0),
                ratio(times["ours"], times["hand"]),
                spread(times["bare"], 1e6, 0),
                *(spread(times[name], 1e6, 0) for name in PEERS),
                difference(measured),
            ]
        )
    section.notes += [
        "Final weights: after the epoch, the app (`schedule=constant`) against the loop with the same order and first "
        "weights; with `fused=True` in the loop, and with the optimizer as its constructor makes it.",
        PEER_NOTE,
        *constancy(20_000 if quick else 1_000_000),
        *profile(CASES[1]),
    ]
    return section


def difference(measured: Measured) -> str:
    """How far the app's weights are from the loop's after the epoch."""
    ours = train(*measured.case.overrides, "schedule=constant").weights
    found = []
    for fused in (True, None):
        model = measured.model()
        optimizer = measured.case.optimize(model, fused)
        silently(functools.partial(tutorial_loop, measured.loader(), model, optimizer))
        theirs = model.state_dict()
        greatest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
        same = all(torch.equal(ours[name], theirs[name]) for name in ours)
        found.append("bit-identical" if same else f"within {greatest:.0e}")
    return f"fused: {found[0]}; stock: {found[1]}"


def constancy(steps: int) -> list[str]:
    """CPU time of an iteration in windows of one long run."""
    epochs = steps // 2000
    training = train(
        "model=mlp", "model.hidden=[8]", "data=fake", "data.size=8000", "data.val_size=10", "data.image_size=4",
        "data.channels=1", "data.batch_size=4", f"train.max_epochs={epochs}", "env.device=cpu",
        "env.mp.num_threads=1", "randomness.seed=3",
    )  # fmt: skip
    marks = training.marks
    rows = []
    for begin, end in ((0, 1), (1, epochs // 2), (epochs // 2, epochs)):
        first, last = marks[begin], marks[end]
        cost = (last.cpu_seconds - first.cpu_seconds) / (last.step - first.step)
        rows.append(f"steps {first.step} to {last.step}: {cost * 1e6:.0f} us")
    return [
        f"Constant over the run: a model of 218 weights, {steps} iterations in epochs of 2000 with a checkpoint, an "
        f"evaluation (not counted) and 200 log lines each; CPU time per iteration: {'; '.join(rows)}. What an "
        "iteration does depends on counters only; the page, written every 30 s at most and less often the longer it "
        "takes (0.5 % of the time), is the only thing that grows."
    ]


PARTS = (
    ("forward", "module.py", "_wrapped_call_impl"),
    ("loss", "functional.py", "cross_entropy"),
    ("backward", "_tensor.py", "backward"),
    ("optimizer step", "optimizer.py", "wrapper"),
    ("zero_grad", "optimizer.py", "zero_grad"),
    ("batches: gather, normalise, split", "feed.py", "train"),
    ("seeds of the step", "rng.py", "seed_step"),
    ("logger: reading, smoothing, line, row", "logger.py", "step_end"),
    ("checkpoint hook in the loop", "hooks/checkpoint.py", "commit"),
    ("evaluation at the end", "engine.py", "evaluate"),
)


def profile(case: Case) -> list[str]:
    """Where one default iteration's time goes, by cProfile, which makes Python look about twice as slow as it is."""
    profiler = cProfile.Profile()
    fit = run_module.fit

    def profiled(*args: object, **kwargs: object) -> None:
        profiler.enable()
        try:
            fit(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            profiler.disable()

    run_module.fit = profiled  # type: ignore[assignment]
    try:
        train(*case.overrides)
    finally:
        run_module.fit = fit
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = next(
        values[3] for (path, _, name), values in entries.items() if path.endswith("engine.py") and name == "fit"
    )
    lines, known = [], 0.0
    for title, file, function in PARTS:
        own = sum(v[3] for (path, _, name), v in entries.items() if path.endswith(file) and name == function)
        known += own
        lines.append(f"{title:<40}{own / case.steps * 1e6:>8.0f} us {own / whole:>6.1%}")
    rest = whole - known
    lines.append(f"{'the loop itself and all else':<40}{rest / case.steps * 1e6:>8.0f} us {rest / whole:>6.1%}")
    text = "\n".join(lines)
    return [f"```text\nProfile of one iteration, {case.title} (cProfile: Python looks slower than it is)\n{text}\n```"]
