"""The local launcher through Hydra's own command line, with jobs that sleep, fail and die."""

import csv
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy import ENDLESS, KILLED, LEAVING, RAISING

WELL = [300, 100, 230, 50, 330, 150, 80, 200, 260, 110, 160, 60, 310, 130, 210, 90, 250, 105, 180]
"""Milliseconds of the jobs that end well."""
BADLY = [KILLED + 1, RAISING, KILLED + 2, LEAVING, KILLED + 3]


def sweep_over(batch_sizes: list[int]) -> str:
    return f"data.batch_size={','.join(map(str, batch_sizes))}"


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_every_job_ends_by_itself_in_a_slot_of_its_own(toy, start: str) -> None:
    well, badly = (WELL, BADLY) if start == "fork" else (WELL[:3], [KILLED, LEAVING])
    code, output = toy.run(
        sweep_over([*well[:2], *badly, *well[2:]]), "randomness.seed=7", f"hydra.launcher.start={start}"
    )
    assert code != 0, output
    assert ("forks" in output) == (start == "fork"), output
    assert "launcher imported torch: False" in output

    times = list(toy.records("times.json").values())
    assert len(times) == len(well)
    assert toy.count("left") == len(well) + sum(kind < KILLED or kind > KILLED + 3 for kind in badly), "exit handlers"
    assert {used for used, _, _ in times} <= set("0123")
    for gpu in "0123":
        spans = sorted((begun, ended) for used, begun, ended in times if used == gpu)
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(spans)), "a slot was shared"

    failed = {name: record for name, record in toy.records().items() if record["state"] == "failed"}
    assert set(failed) == {f"batch_size-{kind}" for kind in badly}
    assert {record["reason"] for name, record in failed.items() if "-1000" in name} == {"killed by SIGKILL"}
    assert failed[f"batch_size-{LEAVING}"]["error"] == "bad picture"
    assert failed[f"batch_size-{LEAVING}"]["exit_code"] == 65
    if start == "fork":
        assert failed[f"batch_size-{RAISING}"]["error"] == "ValueError: no luck"
    assert output.count(" failed: #") == len(badly)

    with (toy.sweeps[-1] / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["state"] == "done" for row in rows) == len(well)
    assert sum(row["state"] == "failed" for row in rows) == len(badly)
    page = (toy.sweeps[-1] / "report.html").read_text()
    assert all(row["point"] in page for row in rows)


def test_resume_skips_continues_retries_and_adds(toy) -> None:
    toy.run("data.batch_size=1,2", "randomness.seed=3,4", sweep_over([1, 2, RAISING]))
    code, output = toy.run("randomness.seed=4,3,5", sweep_over([RAISING, 1]), "resume=true")
    assert len(toy.sweeps) == 1
    assert "2 done before" in output
    records = toy.records()
    assert records["batch_size-1__seed-3"]["launches"] == 1
    assert records["batch_size-1__seed-5"]["launches"] == 1
    assert records[f"batch_size-{RAISING}__seed-3"]["launches"] == 2
    assert len(records) == 3 * 2 + 2
    log = (toy.sweeps[-1] / f"batch_size-{RAISING}__seed-3" / "stdout.log").read_text()
    assert "resume=False" in log
    assert "resume=auto" in log

    code, output = toy.run("randomness.seed=3,4,5", "data.batch_size=1", "resume=true", "train.max_epochs=40")
    assert code == 0, output
    assert "done before" not in output, "a longer run goes on"


def test_without_resume_a_sweep_gets_a_new_folder(toy) -> None:
    toy.run("randomness.seed=3,4", "data.batch_size=1")
    toy.run("randomness.seed=3,4", "data.batch_size=1")
    assert len(toy.sweeps) == 2
    code, output = toy.run("randomness.seed=3,4", f"hydra.sweep.dir={toy.sweeps[0].relative_to(toy.folder)}")
    assert code != 0
    assert "already holds a sweep; add resume=true" in output


def test_nothing_starts_when_one_config_is_wrong(toy) -> None:
    toy.run("data.batch_size=1,2", "randomness.seed=3")
    code, output = toy.run("data.batch_size=3,-1", "randomness.seed=3")
    assert code != 0
    assert "data.batch_size" in output
    assert len(toy.sweeps) == 1, "it leaves no folder that resume=true would go on with"
    assert toy.count("stdout.log") == 2


def test_options_out_of_their_range_are_refused(toy) -> None:
    code, output = toy.run("data.batch_size=1,2", "hydra.launcher.jobs_per_gpu=0", "hydra.launcher.grace_seconds=-1")
    assert code != 0
    assert "hydra.launcher.jobs_per_gpu must be >= 1, got 0" in output
    assert "hydra.launcher.grace_seconds must be >= 0, got -1" in output
    assert not toy.sweeps


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_ctrl_c_lets_every_job_save_and_leave(toy, start: str) -> None:
    process = toy.start(sweep_over([ENDLESS, ENDLESS + 1, 5]), f"hydra.launcher.start={start}", gpus="0,1")
    toy.wait_for(lambda: toy.count("ready") == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    assert toy.count("saved") == 2
    assert {record["state"] for record in toy.records().values()} <= {"interrupted", "waiting"}
    assert "resume=true goes on" in output


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_a_killed_launcher_leaves_no_orphan(toy, start: str) -> None:
    process = toy.start(sweep_over([ENDLESS, ENDLESS + 1]), f"hydra.launcher.start={start}", gpus="0,1")
    toy.wait_for(lambda: toy.count("ready") == 2)
    process.kill()
    process.communicate()
    toy.wait_for(lambda: toy.count("saved") == 2)


def test_a_killed_zygote_fails_its_jobs_and_the_rest_start_fresh(toy) -> None:
    process = toy.start(sweep_over([ENDLESS, ENDLESS + 1, 5, 6]), gpus="0,1")
    toy.wait_for(lambda: toy.count("ready") == 2)
    (zygote,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(zygote), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    states = {name: record["state"] for name, record in toy.records().items()}
    assert sorted(states.values()) == ["done", "done", "failed", "failed"], output
    toy.wait_for(lambda: toy.count("saved") == 2)


def test_a_second_launcher_is_refused(toy) -> None:
    toy.start(sweep_over([ENDLESS, 5]), gpus="0")
    toy.wait_for(lambda: toy.count("ready") == 1)
    code, output = toy.run(sweep_over([ENDLESS, 5]), "resume=true")
    assert code != 0
    assert "is in use by launcher" in output


def test_gpus_per_job_starts_that_many_ranks(toy) -> None:
    code, output = toy.run("data.batch_size=1,2", "hydra.launcher.gpus_per_job=2", "hydra.launcher.start=fresh")
    assert code == 0, output
    assert {used for used, _, _ in toy.records("times.json").values()} == {"0,1", "2,3"}
    folder: Path = toy.sweeps[-1] / "batch_size-1"
    assert "rank=1 of 2" in (folder / "stdout.rank1.log").read_text()
    assert len(list(folder.glob(".hydra/*"))) == 1


def test_real_training(tmp_path: Path) -> None:
    """A job's output ends with what the run says: no library complains while the interpreter is taken apart."""
    command = [sys.executable, "-m", "app", "--multirun", "randomness.seed=1,2", "train.max_epochs=1"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    (sweep,) = tmp_path.glob("outputs/digits/sweep_*")
    for seed in (1, 2):
        last = (sweep / f"seed-{seed}" / "stdout.log").read_text().splitlines()[-1]
        assert last.startswith("next: python -m app"), last
    command = [sys.executable, "-m", "app.report", str(sweep)]
    assert subprocess.check_output(command, text=True).startswith("2 of 2 points done, 0 failed")
