from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import tiny_run

from app.core.state import Run
from app.hooks.preempt import SIGNALS, Preempt

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every signal has its handler back after the test."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def attached(folder: Path) -> tuple[Run, Preempt]:
    run, hook = tiny_run(folder), Preempt()
    hook.attach(run)
    return run, hook


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_stops_the_run_at_the_next_commit(tmp_path: Path, name: str) -> None:
    run, hook = attached(tmp_path)
    hook.commit(run)
    assert run.stop_reason is None
    assert not run.interrupted()
    signal.raise_signal(signal.Signals[name])
    assert run.interrupted()
    assert run.stop_reason is None
    hook.commit(run)
    assert run.stop_reason == f"signal {name}"
    assert run.exit_code == 128 + signal.Signals[name]
    hook.finish(run, None)


def test_sigterm_under_slurm_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    run, hook = attached(tmp_path)
    signal.raise_signal(signal.SIGTERM)
    assert not run.interrupted()
    hook.commit(run)
    assert run.save_requested
    assert run.stop_reason is None
    run.save_requested = False
    hook.commit(run)
    assert not run.save_requested
    hook.finish(run, None)


def test_a_launcher_s_own_handler_is_left_for_the_very_end(tmp_path: Path) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        run, hook = attached(tmp_path)
        signal.raise_signal(signal.SIGUSR2)
        hook.commit(run)
        hook.finish(run, None)
        assert called == []
        assert run.leave is not None
        run.leave()
        assert called == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_without_a_launcher_there_is_nothing_to_call(tmp_path: Path) -> None:
    run, hook = attached(tmp_path)
    signal.raise_signal(signal.SIGUSR2)
    hook.commit(run)
    hook.finish(run, None)
    assert run.leave is None


def child_status(folder: Path, environment: dict[str, str], pause_seconds: float) -> int:
    """Two Ctrl-C in a child that never reaches a commit: its exit status, 0 when it outlives them."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        attached(folder)
        signal.raise_signal(signal.SIGINT)
        time.sleep(pause_seconds)
        signal.raise_signal(signal.SIGINT)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    assert child_status(tmp_path, {}, 1.1) == 130


def test_two_ctrl_c_within_a_second_are_one(tmp_path: Path) -> None:
    assert child_status(tmp_path, {}, 0.0) == 0


def test_torchrun_s_echo_of_a_ctrl_c_is_no_second_one(tmp_path: Path) -> None:
    assert child_status(tmp_path, {"TORCHELASTIC_RUN_ID": "1"}, 0.05) == 0


def test_a_forked_worker_ignores_its_group_s_signals_but_not_its_end(tmp_path: Path) -> None:
    run, hook = attached(tmp_path)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        while True:
            time.sleep(0.01)
    os.read(ready, 1)
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM):
        os.kill(child, number)
        time.sleep(0.05)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not run.interrupted()
    hook.finish(run, None)
    os.close(ready)
    os.close(tell)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path)
    hook = Preempt()
    thread = threading.Thread(target=hook.attach, args=(run,))
    thread.start()
    thread.join()
    assert "signals are not handled" in caplog.text
    hook.commit(run)
    hook.finish(run, None)
    assert run.stop_reason is None
