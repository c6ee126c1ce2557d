"""How processes end: with their parent, by a signal, without interpreter teardown."""

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
    """Have the kernel send this process `signum` when its parent ends; Linux only, elsewhere nothing.

    With `parent`, its process id, the signal comes at once where the parent has ended already.
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
    """Exit without interpreter teardown; threads are waited for and exit handlers run, as with `sys.exit(code)`.

    With torch, teardown takes 0.5 to 1 s, libraries complain meanwhile, and a gloo thread that still has a tensor to
    give back aborts the process.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)
