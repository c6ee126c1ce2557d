"""Two ways to start the processes of a job: a new interpreter each, or a fork of one that has imported torch.

A fork starts in some 30 ms instead of seconds, and shares the memory of all that is imported. It is safe only from a
process that has one thread and has touched no GPU (https://docs.python.org/3/library/os.html#os.fork); the fork server
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from app.launch.job import Job, output_of

Key = tuple[int, int]
"""A process: (job number, rank)."""


class Processes(Protocol):
    """Starts processes and says which have ended."""

    def start(self, key: Key, folder: Path, variables: Mapping[str, str]) -> None:
        """Start one rank of the job pickled in `folder`, with `variables` on top of this process's environment.

        Raises:
            OSError: its log cannot be opened.
        """
        ...

    def wait(self, timeout_seconds: float) -> list[tuple[Key, int]]:
        """Return the processes that have ended since the last call, with their exit code or minus their signal."""
        ...

    def signal(self, key: Key, signum: int) -> None:
        """Send a signal; SIGKILL reaches everything that the process has started, other signals only itself."""
        ...

    def close(self) -> None:
        """Kill what still runs."""
        ...


def python_environment() -> dict[str, str]:
    """Return this process's environment, with modules found where this process finds them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


class FreshProcesses:
    """A new interpreter for every process."""

    def __init__(self, inherited_fd: int) -> None:
        self._inherited_fd = inherited_fd
        self._processes: dict[Key, subprocess.Popen[bytes]] = {}

    def start(self, key: Key, folder: Path, variables: Mapping[str, str]) -> None:
        rank = key[1]
        command = [sys.executable, "-m", "app.launch.task", str(folder), str(rank), str(os.getpid())]
        with output_of(folder, rank).open("ab") as output:
            self._processes[key] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**python_environment(), **variables},
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


FORKSERVER_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""OpenBLAS would start threads when it is loaded, torch would touch the GPU when it is asked whether there is one."""
END: list[dict[str, Any]] = [{"unsafe": "it ended during its imports"}]
"""What is read from a fork server that is gone."""


class UnsafeForkError(RuntimeError):
    """The fork server must not fork: the message says why."""


class ForkedProcesses:
    """Forks every process from a fork server (app.launch.forkserver), which this object starts and talks to.

    Raises:
        UnsafeForkError: after its imports the fork server has threads or a GPU context, or it failed.
    """

    def __init__(self, inherited_fd: int, preload: list[str], threads: int) -> None:
        self._inherited_fd = inherited_fd
        self._running: set[Key] = set()
        self._received = b""
        self._fresh: FreshProcesses | None = None
        self._control, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "app.launch.forkserver", str(theirs.fileno()), str(os.getpid()), *preload],
                stdin=subprocess.DEVNULL,
                env=python_environment() | FORKSERVER_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
                pass_fds=[theirs.fileno(), inherited_fd],
            )
        hello = next(iter(self._messages(None)), {"unsafe": "it ended during its imports"})
        if hello.get("unsafe"):
            self.close()
            raise UnsafeForkError(hello["unsafe"])

    def start(self, key: Key, folder: Path, variables: Mapping[str, str]) -> None:
        if self._fresh is not None:
            self._fresh.start(key, folder, variables)
            return
        output = output_of(folder, key[1])
        output.open("ab").close()  # here, where an error can be reported
        self._running.add(key)
        self._send(start=key, folder=str(folder), output=str(output), environment=dict(variables))

    def wait(self, timeout_seconds: float) -> list[tuple[Key, int]]:
        if self._fresh is not None:
            return self._fresh.wait(timeout_seconds)
        messages = self._messages(timeout_seconds)
        if messages is END:
            # Somebody killed it, and with it the jobs that it had forked; those that follow start fresh.
            self._fresh = FreshProcesses(self._inherited_fd)
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
        if self._server.poll() is None:
            self._server.terminate()
        self._server.wait()

    def _send(self, **message: Any) -> None:
        with suppress(BrokenPipeError):
            self._control.sendall(json.dumps(message).encode() + b"\n")

    def _messages(self, timeout_seconds: float | None) -> list[dict[str, Any]]:
        """Whole messages that have arrived; `END` once the fork server is gone."""
        readable, _, _ = select.select([self._control], [], [], timeout_seconds)
        if not readable:
            return []
        with suppress(ConnectionResetError):
            received = self._control.recv(65536)
            if received:
                *lines, self._received = (self._received + received).split(b"\n")
                return [json.loads(line) for line in lines]
        return END


def start_processes(
    options: Mapping[str, Any], jobs: Sequence[Job], threads: int, inherited_fd: int
) -> tuple[Processes, str]:
    """Choose by `hydra.launcher.start`; return also in words how jobs start and why."""
    spawns = any("env" in job.config and job.config.env.mp.start_method != "fork" for job in jobs)
    if options["start"] == "fresh" or (options["start"] == "auto" and spawns):
        why = "" if options["start"] == "fresh" else " (env.mp.start_method is not fork)"
        return FreshProcesses(inherited_fd), f"in fresh interpreters{why}"
    preload = [jobs[0].task.split(":")[0], *options["preload"]]
    try:
        return ForkedProcesses(inherited_fd, preload, threads), "as forks of one warm process"
    except UnsafeForkError as error:
        return FreshProcesses(inherited_fd), f"in fresh interpreters (forking is not safe here: {error})"
