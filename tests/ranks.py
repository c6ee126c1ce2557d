"""Runs of several processes for the tests: torchrun around the real command, and a hook that does harm."""

import atexit
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.core.hook import Hook
from app.core.state import Run, StepInfo

HERE = Path(__file__).parent


class Harm(Hook):
    """Sends `name` to its own process after `step` steps on `rank`, in the first attempt only."""

    def __init__(self, step: int, rank: int, name: str) -> None:
        self.step, self.rank, self.number = step, rank, getattr(signal, name)

    def step_end(self, run: Run, step: StepInfo) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and run.state.progress.step == self.step and run.world.rank == self.rank:
            os.kill(os.getpid(), self.number)


class Threads(Hook):
    """Prints the names of the threads that are left when the interpreter ends."""

    def attach(self, run: Run) -> None:
        atexit.register(self.show, run.world.rank)

    @staticmethod
    def show(rank: int) -> None:
        names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
        print(f"rank {rank} ends with threads {names}", flush=True)


class HalfUsed(nn.Module):
    """Has a parameter that its output does not depend on."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.used = nn.Linear(image_size**2, num_classes)
        self.unused = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.used(images.flatten(1))
        return logits


def harm(step: int, rank: int, name: str) -> str:
    return f"+hooks.harm={{_target_: ranks.Harm, step: {step}, rank: {rank}, name: {name}}}"


def start(world_size: int, folder: Path, *overrides: str, restarts: int = 0) -> subprocess.Popen[str]:
    """torchrun with `world_size` ranks of the command, in `folder`."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command = [*torchrun, f"--max-restarts={restarts}", "-m", "app", f"hydra.run.dir={folder}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "APP_TRUSTED_PACKAGES": "ranks"}
    return subprocess.Popen(
        command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(world_size: int, folder: Path, *overrides: str, restarts: int = 0, seconds: float = 180) -> tuple[int, str]:
    """Exit code of torchrun and what all printed; the command alone for a world of one."""
    with start(world_size, folder, *overrides, restarts=restarts) as process:
        output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def measure(world_size: int) -> dict[str, Any]:
    """What tests/rank_evaluation.py finds on so many ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    output = subprocess.check_output([*torchrun, str(HERE / "rank_evaluation.py")], env=environment, text=True)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
