"""Nothing that a run leaves behind may stop another: each file emptied, truncated, removed, then all that reads it.

The quick tests damage all files at once; the slow ones each file alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invocation import Terminal
from records import WAYS, damage, is_of_a_checkpoint, left_behind

TINY = ("data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "schedule.warmup=0")
SWEEP = ("--multirun", "optim.lr=0.1,0.01", "hydra.launcher.preload=[]")
JOB = {"SLURM_JOB_ID": "7"}
RESTART = {**JOB, "SLURM_RESTART_COUNT": "1"}


def command(folder: Path, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def run_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two epochs, and an older one."""
    folder = tmp_path_factory.mktemp("run")
    for _ in range(2):
        ended = command(folder, "app", *TINY, "train.max_epochs=2", **JOB)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def sweep_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete sweep of two points, and an older one of one."""
    folder = tmp_path_factory.mktemp("sweep")
    for words in (("--multirun", "optim.lr=0.5", "hydra.launcher.preload=[]"), SWEEP):
        ended = command(folder, "app", *TINY, "train.max_epochs=1", *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def go_on(terminal: Terminal, codes: tuple[int, ...] = (0,)) -> None:
    """Everything that reads the records of runs: a requeue, resume, a longer resume, a test, a fresh start."""
    for name, value in RESTART.items():
        terminal.monkeypatch.setenv(name, value)
    outcomes = [terminal.run(*TINY, "train.max_epochs=2")]
    for name in RESTART:
        terminal.monkeypatch.delenv(name)
    outcomes += [
        terminal.run(*TINY, "train.max_epochs=2", "resume=true"),
        terminal.run(*TINY, "train.max_epochs=3", "resume=true"),
        terminal.run(*TINY, "mode=test", "resume=true"),
        terminal.run(*TINY, "train.max_epochs=1"),
    ]
    for outcome in outcomes:
        assert outcome.code in codes, outcome.message
        assert "Traceback" not in outcome.message, outcome.message
        assert "delete it" not in outcome.message


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_with_all_records_damaged(
    way: str, run_template: Path, terminal: Terminal, one_thread: None
) -> None:
    shutil.copytree(run_template / "outputs", terminal.folder / "outputs", symlinks=True)
    for path in left_behind(terminal.folder / "outputs"):
        if not is_of_a_checkpoint(path):
            damage(path, way)
    go_on(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_with_any_file_damaged(
    way: str, run_template: Path, terminal: Terminal, one_thread: None
) -> None:
    root = terminal.folder / "outputs"
    for path in left_behind(run_template / "outputs"):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(run_template / "outputs", root, symlinks=True)
        damage(root / path.relative_to(run_template / "outputs"), way)
        go_on(terminal, (0, 66) if is_of_a_checkpoint(path) else (0,))


def sweep_on(folder: Path, codes: tuple[int, ...] = (0,)) -> None:
    """Everything that reads the records of sweeps: the report, the sweep again, a longer one."""
    newest = max(folder.glob("outputs/digits/sweep_*"))
    report = command(folder, "app.report", str(newest.relative_to(folder)))
    known = any(newest.glob("*/job.json"))
    outcomes = [
        (report, (0,) if known else (0, 64)),  # a folder without any job's record is no sweep
        (command(folder, "app", *TINY, "train.max_epochs=1", *SWEEP, "resume=true"), codes),
        (command(folder, "app", *TINY, "train.max_epochs=2", *SWEEP, "resume=true"), codes),
        (command(folder, "app.report", str(newest.relative_to(folder))), (0,)),
    ]
    for outcome, allowed in outcomes:
        message = outcome.stdout + outcome.stderr
        assert outcome.returncode in allowed, message
        assert "Traceback" not in message, message
        assert "delete it" not in message
    assert max(folder.glob("outputs/digits/sweep_*")) == newest, "the same sweep went on"


@pytest.mark.parametrize("way", ["emptied", pytest.param("truncated", marks=pytest.mark.slow)])
def test_a_sweep_goes_on_with_all_records_damaged(way: str, sweep_template: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep_template / "outputs", tmp_path / "outputs", symlinks=True)
    for path in left_behind(tmp_path / "outputs"):
        if not is_of_a_checkpoint(path) and path.name not in ("job.json", "sweep.json"):
            damage(path, way)
    for path in tmp_path.glob("outputs/digits/sweep_*/*/job.json"):
        damage(path, way)
    for path in sorted(tmp_path.glob("outputs/digits/sweep_*/sweep.json"))[:1]:
        damage(path, way)  # an older sweep's; without any record there is nothing to know a sweep by
    sweep_on(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_goes_on_with_any_file_damaged(way: str, sweep_template: Path, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for path in left_behind(sweep_template / "outputs"):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sweep_template / "outputs", root, symlinks=True)
        damage(root / path.relative_to(sweep_template / "outputs"), way)
        sweep_on(tmp_path, (0, 66) if is_of_a_checkpoint(path) else (0,))
