"""Runs the toy app in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, missing

TOY = Path(__file__).with_name("toy.py")


class Toy:
    """The toy app in a folder; four simulated GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launcher = ["hydra/launcher=local", "hydra.launcher.preload=[]"]
        self.environment: dict[str, str] = {}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, gpus: str = "0,1,2,3") -> subprocess.Popen[str]:
        """Starts a sweep without waiting; Ctrl-C reaches it as from a terminal."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1", **self.environment}
        command = [sys.executable, str(TOY), "--multirun", *self.launcher]
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

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
        """Waits for something that running jobs do."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            process = self.processes[-1] if self.processes else None
            if process and process.poll() not in (None, 0, -signal.SIGKILL) and process.stdout is not None:
                pytest.fail(f"the launcher ended with {process.returncode}: {process.stdout.read()}")
            assert time.monotonic() < deadline, f"it did not happen within {timeout_seconds} s"
            time.sleep(0.02)

    def count(self, name: str) -> int:
        """How many jobs have left the file `name`."""
        return len(list(self.folder.glob(f"outputs/*/*/*/{name}")))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM of two nodes that allows arrays of five."""
    if absent := missing():
        pytest.skip(
            f"no SLURM here: {', '.join(absent)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
        )
    running = Cluster(tmp_path_factory.mktemp("slurm"), max_array_size=5)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def slurm_toy(toy: Toy, cluster: Cluster) -> Toy:
    """The toy app with the SLURM launcher."""
    toy.launcher = ["hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5", "hydra.launcher.cpus_per_task=1"]
    toy.environment = cluster.environment
    return toy


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
