"""Two ways to start the processes of a job: a new interpreter each, or a fork of one that has imported torch.

A fork starts in some 30 ms instead of seconds, and shares the memory of all that is imported. It is safe only from a
process that has one thread and has touched no GPU (https://docs.python.org/3/library/os.html#os.fork); the zygote
checks that after its imports, and a new interpreter is started wherever it does not hold.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.launch.job import OUTPUT, Job
from app.launch.queue import Key, Starter
from app.launch.slots import Slot

Environment = Callable[[Job, Slot, int], Mapping[str, str]]
"""What a rank of a job in a slot gets on top of this process's environment."""


def output_of(job: Job, rank: int) -> Path:
    """The file that takes standard output and error."""
    return job.folder / (OUTPUT if rank == 0 else f"stdout.rank{rank}.log")


def python_environment() -> dict[str, str]:
    """This process's environment, with modules found where this process finds them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


class FreshStarter:
    """A new interpreter for every process."""

    def __init__(self, environment: Environment, inherited_fd: int) -> None:
        self._environment = environment
        self._inherited_fd = inherited_fd
        self._processes: dict[Key, subprocess.Popen[bytes]] = {}

    def start(self, key: Key, job: Job, slot: Slot) -> None:
        rank = key[1]
        command = [sys.executable, "-m", "app.launch.worker", str(job.folder), str(rank), str(os.getpid())]
        with output_of(job, rank).open("ab") as output:
            self._processes[key] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**python_environment(), **self._environment(job, slot, rank)},
                start_new_session=True,
                pass_fds=[self._inherited_fd],
            )

    def wait(self, timeout_seconds: float) -> list[tuple[Key, int]]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            ended = [(key, process) for key, process in self._processes.items() if _has_ended(process)]
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for key, process in ended:
            kill_group(process.pid)
            process.wait()
            del self._processes[key]
        return [(key, process.returncode) for key, process in ended]

    def signal(self, key: Key, signum: int) -> None:
        process = self._processes.get(key)
        if process is None:
            return
        if signum == signal.SIGKILL:
            kill_group(process.pid)
        else:
            process.send_signal(signum)

    def close(self) -> None:
        for process in self._processes.values():
            kill_group(process.pid)
            process.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, leaving it a zombie, so that its process group's number is still its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_group(pid: int) -> None:
    """Kills all that is left of the session that `pid` leads, such as loader workers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


ZYGOTE_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""OpenBLAS would start threads when it is loaded, torch would touch the GPU when it is asked whether there is one."""
END: list[dict[str, Any]] = [{"unsafe": "it ended during its imports"}]
"""What is read from a zygote that is gone."""


class ZygoteError(RuntimeError):
    """The zygote must not fork: the message says why."""


class ZygoteStarter:
    """Forks every process from a zygote (app.launch.zygote), which this object starts and talks to.

    Raises:
        ZygoteError: after its imports the zygote has threads or a GPU context, or it failed.
    """

    def __init__(self, environment: Environment, inherited_fd: int, preload: list[str], threads: int) -> None:
        self._environment = environment
        self._inherited_fd = inherited_fd
        self._running: set[Key] = set()
        self._received = b""
        self._fresh: FreshStarter | None = None
        self._control, theirs = socket.socketpair()
        with theirs:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "app.launch.zygote", str(theirs.fileno()), str(os.getpid()), *preload],
                stdin=subprocess.DEVNULL,
                env=python_environment() | ZYGOTE_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
                pass_fds=[theirs.fileno(), inherited_fd],
            )
        hello = next(iter(self._messages(None)), {"unsafe": "it ended during its imports"})
        if hello.get("unsafe"):
            self.close()
            raise ZygoteError(hello["unsafe"])

    def start(self, key: Key, job: Job, slot: Slot) -> None:
        if self._fresh is not None:
            self._fresh.start(key, job, slot)
            return
        rank = key[1]
        self._running.add(key)
        self._send(
            start=key,
            folder=str(job.folder),
            output=str(output_of(job, rank)),
            environment=dict(self._environment(job, slot, rank)),
        )

    def wait(self, timeout_seconds: float) -> list[tuple[Key, int]]:
        if self._fresh is not None:
            return self._fresh.wait(timeout_seconds)
        messages = self._messages(timeout_seconds)
        if messages is END:
            # Somebody killed it, and with it the jobs that it had forked; those that follow start fresh.
            self._fresh = FreshStarter(self._environment, self._inherited_fd)
            return [(key, -signal.SIGKILL) for key in self._running]
        ended = [((message["ended"][0], message["ended"][1]), message["ended"][2]) for message in messages]
        self._running.difference_update(key for key, _ in ended)
        return ended

    def signal(self, key: Key, signum: int) -> None:
        if self._fresh is not None:
            self._fresh.signal(key, signum)
        else:
            self._send(signal=signum, key=key)

    def close(self) -> None:
        if self._fresh is not None:
            self._fresh.close()
        self._control.close()
        if self._zygote.poll() is None:
            self._zygote.terminate()
        self._zygote.wait()

    def _send(self, **message: Any) -> None:
        with suppress(BrokenPipeError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _messages(self, timeout_seconds: float | None) -> list[dict[str, Any]]:
        """Whole messages that have arrived; `END` once the zygote is gone."""
        readable, _, _ = select.select([self._control], [], [], timeout_seconds)
        if not readable:
            return []
        with suppress(ConnectionResetError):
            received = self._control.recv(65536)
            if received:
                *lines, self._received = (self._received + received).split(b"\n")
                return [json.loads(line) for line in lines]
        return END


def choose_starter(
    start: str, environment: Environment, inherited_fd: int, preload: list[str], threads: int, spawns: bool
) -> tuple[Starter, str]:
    """The starter for `hydra.launcher.start`, and in words how jobs start and why."""
    if start == "fresh" or (start == "auto" and spawns):
        why = "" if start == "fresh" else " (env.mp.start_method is not fork)"
        return FreshStarter(environment, inherited_fd), f"in fresh interpreters{why}"
    try:
        return ZygoteStarter(environment, inherited_fd, preload, threads), "as forks of one warm process"
    except ZygoteError as error:
        return FreshStarter(environment, inherited_fd), f"in fresh interpreters (forking is not safe here: {error})"
