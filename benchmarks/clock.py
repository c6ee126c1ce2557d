"""Times the real command from the inside: a hook, and a call of the command line in this process."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple, TypeVar

import torch

from app import cli
from app.core.hook import Hook
from app.core.state import Run, StepInfo

T = TypeVar("T")


class Mark(NamedTuple):
    """A moment of a run; seconds do not count evaluations."""

    step: int
    cpu_seconds: float
    wall_seconds: float


@dataclass
class Training:
    """What one call of `train` left behind; times are CPU seconds of the whole process, all its threads."""

    cpu_seconds: float = 0.0
    """From the first batch of the first epoch until the last save is on disk, without the evaluations."""
    steps: int = 0
    marks: list[Mark] = field(default_factory=list)
    """At the start of every epoch, and at the end of the run."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    run: Run | None = None


class Clock(Hook):
    """Reads the process's CPU clock where an epoch begins, around evaluations, and when the run has ended."""

    priority = 100

    def attach(self, run: Run) -> None:
        self.training = Training(run=run)
        self.left_out = (0.0, 0.0)
        finished.append(self.training)

    def epoch_start(self, run: Run) -> None:
        self.training.marks.append(self.mark(run))

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        before = self.mark(run)
        yield
        after = self.mark(run)
        self.left_out = (
            self.left_out[0] + after.cpu_seconds - before.cpu_seconds,
            self.left_out[1] + after.wall_seconds - before.wall_seconds,
        )

    def finish(self, run: Run, error: BaseException | None) -> None:
        self.training.marks.append(self.mark(run))
        first, last = self.training.marks[0], self.training.marks[-1]
        self.training.cpu_seconds = last.cpu_seconds - first.cpu_seconds
        self.training.steps = last.step - first.step
        self.training.weights = {name: value.clone() for name, value in run.state.model.state_dict().items()}

    def mark(self, run: Run) -> Mark:
        if run.world.device.type == "cuda":
            torch.cuda.synchronize()
        return Mark(run.state.progress.step, process_time() - self.left_out[0], perf_counter() - self.left_out[1])


class FirstStep(Hook):
    """Says when the first new training step is done, and ends the process there."""

    def attach(self, run: Run) -> None:
        self.built = process_time()

    def step_end(self, run: Run, step: StepInfo) -> None:
        print(json.dumps({"built": self.built, "first_step": process_time(), "step": run.state.progress.step}))
        sys.stdout.flush()
        os._exit(0)


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
