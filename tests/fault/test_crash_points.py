"""F2, F3: death, or an error, at every file operation of a save."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from operations import interposed, leftovers, opened, save, state_of

from app.checkpoint import contents
from app.checkpoint.recovery import newest_intact
from app.checkpoint.space import SaveError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
DEAD, COMPLETE = 9, 0


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(COMPLETE)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def two_saved(folder: Path, keep: int) -> None:
    store = opened(folder, keep)
    save(store, 1)
    save(store, 2)


def check_continues(folder: Path, keep: int, complete: bool) -> None:
    """What a start after the crash must find: the checkpoint before or the new one; and the next save works."""
    found = newest_intact(folder)
    assert found is not None
    assert found.step == 3 if complete else found.step in (2, 3)
    assert contents.load(folder / found.name)["model"]["w"][0] == found.step
    store = opened(folder, keep)
    assert leftovers(folder) == []
    again = newest_intact(folder)
    assert again is not None
    assert again.step == found.step
    save(store, 4)
    assert leftovers(folder) == []
    assert contents.load(folder / "best.pth")["model"]["w"][0] == 4
    periodic = [each.step for each in store.manifests() if each.periodic]
    assert periodic[-1] == 4
    assert len(periodic) <= keep
    assert [each.step for each in store.manifests() if each.best] == [4]


@pytest.mark.parametrize(("keep", "torn"), [(1, True), (3, False)], ids=["keep 1, torn writes", "keep 3"])
def test_death_at_every_operation(tmp_path: Path, keep: int, torn: bool) -> None:
    def die(tear: Callable[[], object]) -> None:
        if torn:
            tear()
        os._exit(DEAD)

    points = 0
    while True:
        points += 1
        folder = tmp_path / str(points)
        two_saved(folder, keep)

        def crash(folder: Path = folder, at: int = points) -> None:
            with interposed(at, die):
                save(opened(folder, keep), 3)

        status = in_child(crash)
        assert status in (DEAD, COMPLETE)
        check_continues(folder, keep, complete=status == COMPLETE)
        shutil.rmtree(folder)
        if status == COMPLETE:
            break
    assert points > 25


@pytest.mark.parametrize(("keep", "code"), [(1, errno.EIO), (3, errno.ENOSPC)], ids=["keep 1, EIO", "keep 3, ENOSPC"])
def test_an_error_at_every_operation(tmp_path: Path, keep: int, code: int, caplog: pytest.LogCaptureFixture) -> None:
    def fail(tear: Callable[[], object]) -> None:
        raise OSError(code, os.strerror(code))

    points = 0
    messages: list[tuple[int, str]] = []
    while True:
        points += 1
        folder = tmp_path / str(points)
        store = opened(folder, keep)
        save(store, 1)
        save(store, 2)
        with interposed(points, fail) as operations:
            try:
                save(store, 3)
            except SaveError as error:
                messages.append((error.exit_code, str(error)))
        reached = operations.count >= points
        found = newest_intact(folder)
        assert found is not None
        assert found.step in (2, 3)
        assert not any(name.endswith(".tmp") for name in leftovers(folder))
        check_continues(folder, keep, complete=not reached)
        shutil.rmtree(folder)
        if not reached:
            break
    assert len(messages) > 15
    assert all(exit_code == 74 and os.strerror(code) in text for exit_code, text in messages)
    assert all("/epoch_3.pth" in text for _, text in messages)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


CALLS = [
    *("openat", "write", "ftruncate", "lseek", "fsync", "rename", "renameat2", "link", "linkat", "symlink"),
    *("symlinkat", "unlink", "unlinkat", "mkdir"),
]


@pytest.mark.skipif(not can_trace(), reason="needs strace and the right to trace")
def test_kill_at_every_system_call(tmp_path: Path) -> None:
    """The real thing: each call that a start and a save make on files, from the first to the last, killed once."""
    killed = 0
    for call in CALLS:
        for at in itertools.count(1):
            folder = tmp_path / f"{call}_{at}"
            two_saved(folder, 2)
            status = traced_save(folder, f"inject={call}:signal=SIGKILL:when={at}")
            assert status in (-signal.SIGKILL, COMPLETE)
            check_continues(folder, 2, complete=status == COMPLETE)
            shutil.rmtree(folder)
            if status == COMPLETE:
                break
            killed += 1
    assert killed > 35


def traced_save(folder: Path, inject: str) -> int:
    """Saves in a forked child under strace; returns the child's exit status."""
    go, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(start)
        os.read(go, 1)
        save(opened(folder, 2), 3)
        os._exit(COMPLETE)
    os.close(go)
    command = ["strace", "-f", "-p", str(child), "-e", inject, "-o", os.devnull]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        os.write(start, b"x")
        os.close(start)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_save_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    """The same with real kills: a child saves without end, the parent kills it; every start goes on."""
    highest = 0
    for round_number in range(8):
        start = highest

        def save_for_ever(first: int = start + 1) -> None:
            store = opened(tmp_path, 2)
            for step in range(first, first + 10_000):
                save(store, step)

        child = os.fork()
        if child == 0:
            save_for_ever()
            os._exit(COMPLETE)
        time.sleep(0.02 + 0.011 * round_number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest_intact(tmp_path)
        reached = found.step if found is not None else 0
        assert reached >= highest
        if found is not None:
            assert contents.load(tmp_path / found.name)["progress"] == state_of(reached)["progress"]
        highest = reached
    opened(tmp_path, 2)
    assert leftovers(tmp_path) == []
    assert highest > 0
