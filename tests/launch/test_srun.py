"""`python -m app` under a real SLURM without our launcher: which processes are one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
APP = [
    sys.executable, "-m", "app", "env.device=cpu", "model=mlp", "model.hidden=[16]", "data.limit_train=64",
    "data.limit_val=32", "train.max_epochs=1", "+hooks.witness={_target_: witness.Witness}",
]  # fmt: skip


@pytest.fixture
def slurm(cluster: Cluster, tmp_path: Path):
    """Run a command beside the cluster, in an empty folder."""
    environment = {**os.environ, **cluster.environment, "OMP_NUM_THREADS": "1", "APP_TRUSTED_PACKAGES": "witness"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])

    def run(*command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=typed, capture_output=True, text=True, check=False
        )

    return run


def sizes(folder: Path) -> list[list[int]]:
    """The number of ranks that each rank of each run saw, by run folder."""
    runs = sorted({path.parent.resolve() for path in folder.glob("outputs/digits/*/DONE.json")})  # `latest` is a link
    return [[int(path.read_text().split()[0]) for path in sorted(run.glob("witness.rank*"))] for run in runs]


def write_script(folder: Path) -> Path:
    script = folder / "job.sh"
    script.write_text("#!/bin/sh\n" + " ".join(f"'{word}'" for word in APP))
    return script


def log_of(job: subprocess.CompletedProcess[str]) -> str:
    return job.stdout + job.stderr


@pytest.mark.parametrize("place", [["-n2"], ["-N2"]], ids=["one node", "two nodes"])
def test_the_tasks_of_a_step_are_one_run(slurm, tmp_path: Path, place: list[str]) -> None:
    address = ["env.dist.master_addr=127.0.0.1"] if place == ["-N2"] else []
    ended = slurm("srun", *place, *APP, *address)
    assert ended.returncode == 0, log_of(ended)
    assert sizes(tmp_path) == [[2, 2]], log_of(ended)
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"], "no rank writes into the current folder"


def test_a_batch_script_of_several_tasks_is_one_process(slurm, tmp_path: Path) -> None:
    script = write_script(tmp_path)
    ended = slurm("sbatch", "-n2", "--wait", f"--output={tmp_path}/log", str(script))
    assert ended.returncode == 0, (tmp_path / "log").read_text()
    assert sizes(tmp_path) == [[1]], (tmp_path / "log").read_text()


def test_a_shell_on_a_node_is_one_process(slurm, tmp_path: Path) -> None:
    shell = ["script", "--quiet", "--return", "--command", "srun --pty -n2 sh", "/dev/null"]
    ended = slurm(*shell, typed=f"exec sh {write_script(tmp_path)}\n")
    assert ended.returncode == 0, log_of(ended)
    assert sizes(tmp_path) == [[1]], log_of(ended)


def test_independent_tasks_on_request(slurm, tmp_path: Path) -> None:
    ended = slurm("srun", "-n2", *APP, "env.dist.launcher=none")
    assert ended.returncode == 0, log_of(ended)
    assert sizes(tmp_path) == [[1], [1]], log_of(ended)


def test_a_sweep_is_not_started_twice(slurm, tmp_path: Path) -> None:
    ended = slurm("srun", "-n2", *APP, "--multirun", "randomness.seed=1,2")
    assert ended.returncode == 64, log_of(ended)
    assert ended.stderr.count("--multirun starts the processes of its jobs itself") == 1
    assert not (tmp_path / "outputs").exists()
