"""F7: real signals to real processes, in training, in an evaluation, with loader workers, and twice."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.checkpoint.manifest import Manifest
from app.checkpoint.recovery import newest_intact

ARGUMENTS = ["randomness.seed=1", "hooks.logger.interval=1", "logging.progress=false", "data.limit_train=640"]
SAVED_AT_THE_END = ["hooks.checkpoint.interval=100000", "hooks.checkpoint.save_best=null"]
PATIENCE_SECONDS = 120.0


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The application in a process group of its own, its output as lines."""
    command = [sys.executable, "-m", "app", f"hydra.run.dir={folder}", *ARGUMENTS, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment["OMP_NUM_THREADS"] = "1"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """The output up to the line that matches."""
    text, end = "", time.monotonic() + PATIENCE_SECONDS
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
        assert time.monotonic() < end, text
    raise AssertionError(f"{pattern!r} never came:\n{text}")


def rest(process: subprocess.Popen[str]) -> str:
    """What else it says, to its end."""
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait(PATIENCE_SECONDS)
    return text


def newest(folder: Path) -> Manifest:
    found = newest_intact(folder / "checkpoints")
    assert found is not None
    return found


def test_sigterm_to_the_whole_group_with_loader_workers(tmp_path: Path) -> None:
    loader = ["data.in_memory=false", "data.num_workers=2", "train.max_epochs=50"]
    with started(tmp_path, *loader) as process:
        wait_for(process, r"epoch 2/50 iter 3/")
        os.killpg(process.pid, signal.SIGTERM)
        text = rest(process)
    assert process.returncode == 143, text
    stopped = re.search(r"stopped at epoch (\d+), step (\d+) .*signal SIGTERM", text)
    assert stopped is not None, text
    assert (newest(tmp_path).epoch, newest(tmp_path).step) == (int(stopped[1]), int(stopped[2]))
    assert newest(tmp_path).step >= 13
    assert "Traceback" not in text


def test_a_reader_of_the_output_that_is_gone_does_not_cost_the_run(tmp_path: Path) -> None:
    """`| tee` dies of the same Ctrl-C: nobody takes what the handler says."""
    rare = "hooks.logger.interval=1000"  # logging swallows errors
    with started(tmp_path, "train.max_epochs=1000", "data.limit_train=null", rare, *SAVED_AT_THE_END) as process:
        wait_for(process, "val/top1")
        assert process.stdout is not None
        process.stdout.close()
        log, end = tmp_path / "app.log", time.monotonic() + PATIENCE_SECONDS
        written = log.stat().st_size
        while log.stat().st_size < written + 1000 and time.monotonic() < end:
            time.sleep(0.05)  # it has noticed
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGINT
    assert newest(tmp_path).step > 0
    assert "signal SIGINT" in (tmp_path / "app.log").read_text()


def test_a_terminal_that_is_closed_does_not_cost_the_run(tmp_path: Path) -> None:
    """The connection broke: the terminal is gone, and the live display with it."""
    terminal, its_other_end = pty.openpty()
    command = [sys.executable, "-m", "app", f"hydra.run.dir={tmp_path}", "train.max_epochs=1000", *SAVED_AT_THE_END]
    ends = {"stdin": its_other_end, "stdout": its_other_end, "stderr": its_other_end}
    with subprocess.Popen(command, start_new_session=True, **ends) as process:
        try:
            os.close(its_other_end)
            text, end = b"", time.monotonic() + PATIENCE_SECONDS
            while b"val/top1" not in text and time.monotonic() < end:
                text += os.read(terminal, 4096)
            os.close(terminal)
            process.send_signal(signal.SIGHUP)
            assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGHUP
        finally:
            process.kill()
    assert newest(tmp_path).step > 0


def test_an_evaluation_is_broken_off_and_made_up_for(tmp_path: Path) -> None:
    slow = ["data.eval_batch_size=1", "train.max_epochs=1", "hooks.checkpoint.interval=5"]
    with started(tmp_path / "a", *slow) as process:
        wait_for(process, r"iter 10/10")
        process.send_signal(signal.SIGUSR1)
        text = rest(process)
    assert process.returncode == 138, text
    assert newest(tmp_path / "a").step == 10
    assert newest(tmp_path / "a").evaluated == -1, "the signal came too late to meet the evaluation"
    with started(tmp_path / "a", *slow, "resume=true") as process:
        assert "val/top1" in rest(process)
    assert process.returncode == 0
    assert newest(tmp_path / "a").evaluated == 10
    with started(tmp_path / "b", *slow) as process:
        rest(process)
    assert last_row(tmp_path / "a") == last_row(tmp_path / "b")


def last_row(folder: Path) -> dict[str, float]:
    row = json.loads((folder / "vis_data" / "scalars.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if name.startswith("val/") and "time" not in name}


STUCK = """
import time
from app.core.hook import Hook

class Stuck(Hook):
    priority = 95

    def step_end(self, run, step):
        if step.step == 25:
            print("here it takes long", flush=True)
            time.sleep(SECONDS)
"""
"""A step that takes long: what is signalled meanwhile waits for its end."""


def stuck_for(seconds: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a run whose 25th step takes so long."""
    (folder / "stuck.py").write_text(STUCK.replace("SECONDS", str(seconds)))
    monkeypatch.chdir(folder)
    return ["train.max_epochs=1000", "hooks.checkpoint.async_save=false", "hooks.stuck._target_=stuck.Stuck"]


def test_a_second_ctrl_c_leaves_at_once_and_the_run_goes_on_from_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path / "run", *stuck_for(600, tmp_path, monkeypatch)) as process:
        wait_for(process, "here it takes long")
        process.send_signal(signal.SIGINT)
        wait_for(process, "SIGINT: finishing the step")
        time.sleep(1.1)
        process.send_signal(signal.SIGINT)
        text = rest(process)
    assert process.returncode == 130, text
    assert newest(tmp_path / "run").step == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_within_a_second_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """srun and timeout send two: the run saves and leaves all the same."""
    with started(tmp_path / "run", *stuck_for(2, tmp_path, monkeypatch)) as process:
        wait_for(process, "here it takes long")
        process.send_signal(number)
        wait_for(process, f"{number.name}: finishing the step")
        process.send_signal(number)
        text = rest(process)
    assert process.returncode == 128 + number, text
    assert newest(tmp_path / "run").step == 25
