"""How a process of ours ends: together with the one that started it, and without taking the interpreter apart."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def follow_parent(signum: int, parent: int | None = None) -> None:
    """Lets the kernel send this process `signum` when the one that started it ends; Linux only, elsewhere nothing.

    `parent` is its process id, where known: if it has ended already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


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
