"""The process that job processes are forked from: `python -m app.launch.forkserver CONTROL_FD PARENT_PID MODULE…`.

It imports once what every job needs, starts no thread and touches no GPU, then forks on request, reports how its
children end, and passes on signals. One JSON object per line, over a socket. When the launcher is gone, so is this
process, and the kernel tells its children to save and leave.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from app.launch import task
from app.launch.processes import Key, kill_group
from app.process import follow_parent


def unsafe(modules: Iterable[str]) -> str | None:
    """Imports what every job needs, and `modules`; says why this process must not fork after that, or None."""
    for name in (*task.IMPORTS, *modules):
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"importing {name} failed: {type(error).__name__}: {error}"
    if sys.platform != "linux":
        return "only known to work on Linux"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"{threads - 1} threads were started by imports"
    if any(
        os.path.realpath(f"/proc/self/fd/{number}").startswith("/dev/nvidia") for number in os.listdir("/proc/self/fd")
    ):
        return "a GPU was touched by imports"
    gc.collect()
    gc.freeze()
    return None


class ForkServer:
    """Serves the launcher until it closes the connection."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: dict[int, Key] = {}
        self.received = b""
        self.woken, self.waker = socket.socketpair()

    def serve(self) -> dict[str, Any] | None:
        """Returns None when the launcher is done, and in a forked child what that child is to do."""
        self.woken.setblocking(False)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        while True:
            readable, _, _ = select.select([self.control, self.woken], [], [])
            if self.woken in readable:
                with suppress(BlockingIOError):
                    self.woken.recv(4096)
                self.reap()
            if self.control in readable:
                received = self.control.recv(65536)
                if not received:
                    return None
                *lines, self.received = (self.received + received).split(b"\n")
                for request in map(json.loads, lines):
                    if "signal" in request:
                        self.pass_on(tuple(request["key"]), request["signal"])
                    elif self.fork(tuple(request["start"])) == 0:
                        self.leave()
                        return dict(request)

    def fork(self, key: Key) -> int:
        """Forks; in the parent, remembers the child."""
        pid = os.fork()
        if pid:
            self.children[pid] = key
        return pid

    def leave(self) -> None:
        """In the child: nothing of the server stays."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.control.close()
        self.woken.close()
        self.waker.close()

    def reap(self) -> None:
        """Reports every child that has ended, after killing what it left behind in its session."""
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                kill_group(ended.si_pid)
                _, status = os.waitpid(ended.si_pid, 0)
                number, rank = self.children.pop(ended.si_pid)
                report = {"ended": (number, rank, os.waitstatus_to_exitcode(status))}
                self.control.sendall(json.dumps(report).encode() + b"\n")

    def pass_on(self, key: Key, signum: int) -> None:
        """Signals the child `key`, if it still runs."""
        for pid, other in self.children.items():
            if other == key:
                if signum == signal.SIGKILL:
                    kill_group(pid)
                else:
                    os.kill(pid, signum)


def become(request: dict[str, Any], parent: int) -> NoReturn:
    """In the child: a session, output, environment and random state of its own, then the job, and the end."""
    os.setsid()
    follow_parent(signal.SIGTERM, parent)
    task.redirect_output(Path(request["output"]))
    os.environ.update(request["environment"])
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    task.run_and_leave(Path(request["folder"]), request["start"][1])


def main(control_fd: int, launcher: int, modules: list[str]) -> None:
    """Serves the launcher; forked children never return from here."""
    follow_parent(signal.SIGTERM, launcher)
    server_pid = os.getpid()
    with socket.socket(fileno=control_fd) as control:
        reason = unsafe(modules)
        control.sendall(json.dumps({"unsafe": reason}).encode() + b"\n")
        request = None if reason else ForkServer(control).serve()
    if request is not None:
        become(request, server_pid)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
