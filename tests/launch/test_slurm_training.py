"""Real training on a real SLURM: a time limit, a preemption, the death of a node, each ending in the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]

HERE = Path(__file__).parent
EPOCHS = 300
RUN = [f"train.max_epochs={EPOCHS}", "data.in_memory=false", "data.num_workers=2", "randomness.seed=5"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll_seconds=1", "hydra.launcher.cpus_per_task=1", "optim.lr=2e-3"]


def start(folder: Path, *arguments: str, cluster: Cluster | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(HERE), "APP_TRUSTED_PACKAGES": "witness"}
    return subprocess.Popen(
        [sys.executable, "-m", "app", *RUN, *arguments],
        cwd=folder,
        env=environment | (cluster.environment if cluster else {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def sweep(folder: Path, name: str, cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    return start(folder, "--multirun", *SLURM, f"hydra.sweep.dir={name}", *arguments, cluster=cluster)


def weights(run: Path, epoch: int = EPOCHS) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / f"epoch_{epoch}.pth", weights_only=True)["model"]
    return model


def same(run: Path, reference: dict[str, torch.Tensor]) -> bool:
    found = weights(run)
    return found.keys() == reference.keys() and all(torch.equal(found[key], reference[key]) for key in reference)


def point(folder: Path, name: str) -> Path:
    return next(path.parent for path in (folder / name).glob("*/job.json") if not path.parent.is_symlink())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("reference")
    output, _ = start(folder, "optim.lr=2e-3", "hydra.run.dir=run").communicate()
    assert (folder / "run" / "DONE.json").exists(), output
    return weights(folder / "run")


def wait_for_epoch(toy, run: Path, epoch: int) -> None:
    toy.wait_for(lambda: run.exists() and f"epoch {epoch}/" in _text(run / "stdout.log"), timeout_seconds=400)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_time_limit_preemption_and_a_dead_node(toy, tmp_path: Path, cluster: Cluster, reference) -> None:
    limited = sweep(
        tmp_path,
        "limited",
        cluster,
        "hydra.launcher.timeout_min=2",
        "hydra.launcher.signal_delay_s=20",
        "hydra.launcher.additional_parameters={nodelist: n1}",
        "+hooks.slow={_target_: witness.Slow, seconds: 0.6}",
    )
    preempted = sweep(
        tmp_path,
        "preempted",
        cluster,
        "hydra.launcher.partition=low",
        "hydra.launcher.additional_parameters={nodelist: n2}",
    )
    toy.processes += [limited, preempted]
    toy.wait_for(lambda: list(tmp_path.glob("preempted/*/job.json")) != [])
    run = point(tmp_path, "preempted")
    wait_for_epoch(toy, run, 3)
    cluster.run("sbatch", "-p", "debug", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    toy.wait_for(lambda: "resuming from" in _text(run / "stdout.log"), timeout_seconds=400)
    assert "saving and going on" in _text(run / "stdout.log") or "signal SIGUSR2" in _text(run / "stdout.log")

    before = _text(run / "stdout.log").count("resuming from")
    wait_for_epoch(toy, run, 12)
    cluster.kill_node("n2")
    cluster.start_node("n2")
    toy.wait_for(lambda: _text(run / "stdout.log").count("resuming from") > before, timeout_seconds=400)

    for process in (preempted, limited):
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert same(run, reference)
    assert same(point(tmp_path, "limited"), reference)
    assert "resuming from" in _text(point(tmp_path, "limited") / "stdout.log")


def test_two_nodes_train_one_model(tmp_path: Path, cluster: Cluster) -> None:
    """Both ranks end with the same weights, to the bit, and one process with these up to the order of sums."""
    recipe = ["model=mlp", "train.max_epochs=3", "+hooks.witness={_target_: witness.Witness}", "optim.lr=2e-3"]
    process = sweep(tmp_path, "ddp", cluster, "hydra.launcher.nodes=2", "env.dist.master_addr=127.0.0.1", *recipe)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    together = point(tmp_path, "ddp")
    first, second = ((together / f"witness.rank{rank}").read_text() for rank in (0, 1))
    assert first.startswith("2 ")
    assert first == second

    process = start(tmp_path, "hydra.run.dir=alone", *recipe)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    alone = weights(tmp_path / "alone", epoch=3)
    torch.testing.assert_close(weights(together, epoch=3), alone, rtol=1e-3, atol=2e-5)
