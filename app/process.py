"""How a process of ours ends: together with the one that started it, and without taking the interpreter apart."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PATH = os.environ.get("PATH", os.defpath)
"""As this program was started with: hydra.job.env_set comes later, and must not choose which programs we run."""


def follow_parent(signum: int, parent: int | None = None) -> None:
    """Lets the kernel send this process `signum` when the one that started it ends; Linux only, elsewhere nothing.

    `parent` is its process id, where known: if it has ended already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind this process as Ctrl-C does, with exit code 128 + n, while nobody handles them.

    Not in a process of several: it may be waiting for the others inside of C code, and would not end.
    """
    own = os.getpid()

    def unwind(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise SystemExit(128 + signum)
        signal.signal(signum, signal.SIG_DFL)  # a child that was forked meanwhile
        os.kill(os.getpid(), signum)

    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    unhandled = [each for each in (signal.SIGTERM, signal.SIGHUP) if alone and signal.getsignal(each) == signal.SIG_DFL]
    for each in unhandled:
        signal.signal(each, unwind)
    try:
        yield
    finally:
        for each in unhandled:
            signal.signal(each, signal.SIG_DFL)


def leave(code: int | str | None) -> NoReturn:
    """Ends this process as `sys.exit(code)` would, but does not take the interpreter apart; exit handlers run.

    With torch in it that takes half a second to a second, in which libraries complain into the output, and a thread of
    gloo's that still has a tensor to give back aborts the process.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)
