"""Nothing that a SLURM job leaves may stop the sweep that it belongs to (see tests/fault/test_records.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from records import WAYS, damage, is_of_a_checkpoint, left_behind
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]
WORDS = (
    "--multirun", "hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5", "hydra.launcher.cpus_per_task=1",
    "optim.lr=0.1", "data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_goes_on_with_all_that_its_jobs_left_damaged(way: str, tmp_path: Path, cluster: Cluster) -> None:
    def app(*words: str) -> None:
        environment = {**os.environ, **cluster.environment, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "app", *WORDS, *words]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        message = ended.stdout + ended.stderr
        assert ended.returncode == 0, message
        assert "Traceback" not in message, message

    app("train.max_epochs=1")
    (sweep,) = tmp_path.glob("outputs/digits/sweep_*")
    for path in left_behind(sweep):
        if not is_of_a_checkpoint(path) and path.name != "sweep.json":
            damage(path, way)
    app("train.max_epochs=2", "resume=true")
    assert list(tmp_path.glob("outputs/digits/sweep_*")) == [sweep]
    (point,) = (path.parent for path in sweep.glob("*/DONE.json"))
    assert (point / "checkpoints" / "epoch_2.json").exists()
    assert "resuming from" in (point / "stdout.log").read_text(errors="replace")
