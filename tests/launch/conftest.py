"""Runs the toy app in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).with_name("toy.py")


class Toy:
    """The toy app in a folder; four simulated GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, gpus: str = "0,1,2,3") -> subprocess.Popen[str]:
        """Starts a sweep without waiting; Ctrl-C reaches it as from a terminal."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TOY), "--multirun", "hydra/launcher=local", "hydra.launcher.preload=[]"]
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, gpus: str = "0,1,2,3") -> tuple[int, str]:
        """Runs a sweep; returns exit code and output."""
        process = self.start(*arguments, gpus=gpus)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @property
    def sweeps(self) -> list[Path]:
        return sorted(self.folder.glob("outputs/digits/sweep_*"))

    def records(self, name: str = "job.json") -> dict[str, Any]:
        """The JSON file `name` of each point of the newest sweep."""
        return {path.parent.name: json.loads(path.read_text()) for path in self.sweeps[-1].glob(f"*/{name}")}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits for something that running jobs do."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within a minute"
            time.sleep(0.02)

    def count(self, name: str) -> int:
        """How many jobs have left the file `name`."""
        return len(list(self.folder.glob(f"outputs/*/*/*/{name}")))


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    runner = Toy(tmp_path)
    yield runner
    for process in runner.processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
