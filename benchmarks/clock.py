"""Times the real command from the inside: a hook, and a call of the command line in this process."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import TypeVar

import torch

from app import cli
from app.hooks.base import Hook
from app.state import Run

T = TypeVar("T")


@dataclass
class Training:
    """What one call of `train` left behind; times are CPU seconds of the whole process, all its threads."""

    cpu_seconds: float = 0.0
    """From the first batch of the first epoch until the last save is on disk, without the evaluations."""
    steps: int = 0
    marks: list[tuple[int, float]] = field(default_factory=list)
    """(step, CPU seconds without evaluations) at the start of every epoch."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    run: Run | None = None


class Clock(Hook):
    """Reads the process's CPU clock where an epoch begins, around evaluations, and when the run has ended."""

    priority = 100

    def attach(self, run: Run) -> None:
        self.training = Training(run=run)
        self.evaluating_seconds = 0.0
        finished.append(self.training)

    def epoch_start(self, run: Run) -> None:
        self.training.marks.append((run.state.progress.step, process_time() - self.evaluating_seconds))

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        before = process_time()
        yield
        self.evaluating_seconds += process_time() - before

    def finish(self, run: Run, error: BaseException | None) -> None:
        step, begin = self.training.marks[0]
        self.training.cpu_seconds = process_time() - self.evaluating_seconds - begin
        self.training.steps = run.state.progress.step - step
        self.training.weights = {name: value.clone() for name, value in run.state.model.state_dict().items()}


finished: list[Training] = []
"""Runs by this process, newest last: the command line gives nothing back but an exit code."""


def train(*overrides: str) -> Training:
    """`python -m app OVERRIDES` in this process, its output into nothing, its folder removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        clock = "+hooks.clock={_target_: benchmarks.clock.Clock, priority: 100}"
        silently(lambda: cli.main([f"output_root={folder}", f"hydra.run.dir={Path(folder, 'run')}", clock, *overrides]))
    return finished.pop()


def silently(work: Callable[[], T]) -> T:
    """Calls `work`, its printed lines formatted and thrown away."""
    with redirect_stdout(io.StringIO()):
        try:
            return work()
        finally:
            logging.getLogger().handlers.clear()
