"""The SLURM launcher on a real SLURM of two nodes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy import ENDLESS, KILLED, LEAVING, RAISING, REQUEUED

pytestmark = pytest.mark.slurm


def sweep_over(*batch_sizes: int) -> str:
    return f"data.batch_size={','.join(map(str, batch_sizes))}"


def test_an_array_is_collected_whatever_becomes_of_its_jobs(slurm_toy) -> None:
    code, output = slurm_toy.run(sweep_over(5, KILLED, 6, RAISING, 7, LEAVING))
    assert code != 0
    states = {name: record["state"] for name, record in slurm_toy.records().items()}
    assert sorted(states.values()) == ["done"] * 3 + ["failed"] * 3, output
    records = slurm_toy.records()
    assert records[f"batch_size-{KILLED}"]["reason"].endswith("FAILED")
    assert records[f"batch_size-{RAISING}"]["error"] == "ValueError: no luck"
    assert records[f"batch_size-{LEAVING}"]["exit_code"] == 65
    jobs = {record["job"].split("_")[0] for record in slurm_toy.records("slurm.json").values()}
    assert len(jobs) == 2, "six jobs are two arrays where five are allowed"
    assert (slurm_toy.sweeps[-1] / "report.html").exists()

    code, output = slurm_toy.run(sweep_over(5, 6, 7, RAISING), "resume=true")
    assert "3 done before" in output
    assert slurm_toy.records()[f"batch_size-{RAISING}"]["launches"] == 2


def test_what_is_queued_is_not_submitted_twice_and_scancel_fails_one(slurm_toy, cluster) -> None:
    command = [sweep_over(ENDLESS, 5)]
    code, output = slurm_toy.run(*command, "hydra.launcher.wait=false")
    assert code == 0, output
    slurm_toy.wait_for(lambda: slurm_toy.count("ready") == 1)

    again = slurm_toy.start(*command)
    job = slurm_toy.records("slurm.json")[f"batch_size-{ENDLESS}"]["job"]
    told = next(line for line in again.stdout if "in the queue already" in line)
    assert f"is in the queue already, as {job}" in told
    cluster.run("scancel", job)
    again.communicate(timeout=60)
    assert len(slurm_toy.sweeps) == 1
    records = slurm_toy.records()
    assert records[f"batch_size-{ENDLESS}"]["reason"] == f"SLURM job {job}: CANCELLED"
    assert records["batch_size-5"]["launches"] == 1


def test_a_requeued_job_goes_on_with_the_config_that_was_submitted(slurm_toy, cluster) -> None:
    own = slurm_toy.folder / "own" / "experiment"
    own.mkdir(parents=True)
    recipe = own / "mine.yaml"
    recipe.write_text("# @package _global_\nname: digits\ndata:\n  eval_batch_size: 11\n")
    process = slurm_toy.start(f"hydra.searchpath=[file://{own.parent}]", "experiment=mine", sweep_over(REQUEUED, 5))
    slurm_toy.wait_for(lambda: slurm_toy.count("ready") == 1)
    recipe.write_text("# @package _global_\nname: digits\ndata:\n  eval_batch_size: 22\n")
    name = f"batch_size-{REQUEUED}"
    job = slurm_toy.records("slurm.json")[name]["job"]
    cluster.run("scancel", "--signal=USR2", job)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"{name} is back in the queue" in output
    used = (slurm_toy.sweeps[-1] / name / ".hydra").glob("*/config.yaml")
    texts = [path.read_text() for path in used]
    assert len(texts) == 2
    assert all("eval_batch_size: 11" in text for text in texts)


def test_nodes_and_tasks_make_one_run(slurm_toy) -> None:
    code, output = slurm_toy.run(sweep_over(5, 6), "hydra.launcher.nodes=2")
    assert code == 0, output
    folder: Path = slurm_toy.sweeps[-1] / "batch_size-5"
    assert "rank=0 of 2" in (folder / "stdout.log").read_text()
    assert "rank=1 of 2" in (folder / "stdout.rank1.log").read_text()
    assert len(list(folder.glob(".hydra/*"))) == 1


def test_each_job_has_the_gpu_that_slurm_gave_it(slurm_toy, cluster) -> None:
    if not cluster.root:
        pytest.skip("simulated GPUs need root")
    code, output = slurm_toy.run(sweep_over(300, 301), "hydra.launcher.gpus_per_node=1")
    assert code == 0, output
    assert {used for used, _, _ in slurm_toy.records("times.json").values()} <= {"0", "1"}


def test_every_option_of_the_submitit_launcher_reaches_sbatch(slurm_toy, cluster) -> None:
    if not cluster.root:
        pytest.skip("simulated GPUs need root")
    code, output = slurm_toy.run(sweep_over(302, 303), "hydra.launcher.gres=gpu:1", "hydra.launcher.exclude=n1")
    assert code == 0, output
    assert {used for used, _, _ in slurm_toy.records("times.json").values()} <= {"0", "1"}
    (script, *_) = slurm_toy.sweeps[-1].glob(".submitit/*/*_submission.sh")
    assert {"#SBATCH --gres=gpu:1", "#SBATCH --exclude=n1"} <= set(script.read_text().splitlines())


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_unknown_options_are_refused(toy, launcher: str) -> None:
    toy.launcher = [f"hydra/launcher={launcher}"]
    code, output = toy.run(sweep_over(5, 6), "+hydra.launcher.partitoin=low", "+hydra.launcher.cpu_slot=1")
    assert code != 0
    near = {"slurm": "partition", "local": "cpu_slots"}[launcher]
    assert "unknown key 'hydra.launcher.partitoin'" in output
    assert f"did you mean 'hydra.launcher.{near}'" in output
    assert not toy.sweeps


def test_sbatch_in_its_own_words(slurm_toy) -> None:
    code, output = slurm_toy.run(sweep_over(5, 6), "hydra.launcher.partition=nowhere")
    assert code != 0
    assert "invalid partition specified: nowhere" in output


def test_a_job_that_cannot_start_says_why_and_ctrl_c_leaves_it(slurm_toy, cluster) -> None:
    process = slurm_toy.start(sweep_over(5, 6), "hydra.launcher.cpus_per_task=1000")
    assert any("2 jobs are pending in SLURM's queue: PartitionConfig" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    job = slurm_toy.records("slurm.json")["batch_size-5"]["job"].split("_")[0]
    assert f"the jobs go on; to end them: scancel {job}" in output
    assert cluster.run("squeue", "--noheader", "--jobs", job).strip()
    cluster.run("scancel", job)


def test_a_job_that_never_reached_python_says_why(slurm_toy) -> None:
    code, output = slurm_toy.run(sweep_over(5, 6), "hydra.launcher.python=nopython")
    assert code != 0
    errors = {record["error"] for record in slurm_toy.records().values()}
    assert all("nopython: No such file or directory" in error for error in errors), output


def test_without_slurm(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "app", "--multirun", "hydra/launcher=slurm", "randomness.seed=1,2"],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 64
    assert "no SLURM on this machine, sbatch, srun, squeue, scontrol not found in PATH" in ended.stderr
    assert not json.dumps(list(map(str, tmp_path.glob("outputs/*/*")))).count("sweep")


def test_jobs_that_squeue_has_forgotten(cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from app.launch import squeue

    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    squeue.has_accounting.cache_clear()
    assert "999999" not in squeue.states({"999999"}), "without accounting"

    stand_in = tmp_path / "sacct"
    stand_in.write_text('#!/bin/sh\ncase "$*" in *999999*) echo "999999|CANCELLED by 0";; esac\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    squeue.has_accounting.cache_clear()
    assert squeue.states({"999999"})["999999"] == "CANCELLED"
    squeue.has_accounting.cache_clear()
