"""Signals: finish the step, let the checkpoint hook save, leave."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from types import FrameType
from typing import Any

from app.config.schema.hooks import PreemptConf
from app.core.hook import Hook
from app.core.state import Run
from app.log import mute_lost_terminals

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
]  # fmt: skip
SHOW_CURSOR = "\x1b[?25h"
SAME_SECONDS = 1.0
"""Two Ctrl-C closer than this are one: srun, timeout and schedulers signal both a process and its group."""
TORCHRUN_SECONDS = 2.0
"""torchrun passes on a Ctrl-C that its workers have had from the terminal already."""
STEPS_BETWEEN_LOOKS = 10
"""On several GPUs: asking all ranks makes the host wait for the device."""

logger = logging.getLogger(__name__)


class Preempt(PreemptConf, Hook):
    """The handlers only take note; all ranks act together, at a commit.

    Under SLURM, SIGTERM means save and go on: it comes before a preemption, after which SLURM requeues only a job that
    was still running; after scancel the job is killed anyway. A cluster launcher's own handler of SIGUSR1 or SIGUSR2
    (submitit's requeues the job) becomes `run.leave`, to be called when everything is saved and closed.
    """

    def __post_init__(self) -> None:
        self._pid = os.getpid()
        self._received = 0
        self._evaluated = False
        self._interrupted_at = 0.0
        self._previous: dict[int, Any] = {}

    def attach(self, run: Run) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("not in the main thread: signals are not handled")
            return
        self._pid = os.getpid()
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        run.interrupted = lambda: self._received not in (0, *_save_only())

    def evaluating(self, run: Run) -> AbstractContextManager[None]:
        self._evaluated = True  # it may have been broken off: the next commit must not pass over that
        return nullcontext()

    def commit(self, run: Run) -> None:
        world = run.world
        rare = world.size > 1 and world.device.type != "cpu" and not self._evaluated
        if rare and run.state.progress.step % STEPS_BETWEEN_LOOKS:
            return
        self._evaluated = False
        number = world.agree(self._received)
        if number == 0:
            return
        name = signal.Signals(number).name
        if number in _save_only():
            logger.warning("%s under SLURM: saving and going on until killed", name)
            run.save_requested, self._received = True, 0
            return
        run.stop(f"signal {name}", 128 + number)
        previous = self._previous.get(number)
        if name in ("SIGUSR1", "SIGUSR2") and callable(previous):
            run.leave = lambda: previous(number, None)

    def finish(self, run: Run, error: BaseException | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _in_worker(number)
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            same = TORCHRUN_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else SAME_SECONDS
            if self._received == signal.SIGINT and now - self._interrupted_at >= same:
                _leave_at_once()
            if self._received != signal.SIGINT:  # counted from the first, or holding Ctrl-C would never leave
                self._interrupted_at = now
        self._received = number
        mute_lost_terminals()
        with suppress(OSError):  # nobody may be there to read it: `| tee` dies of the same Ctrl-C
            os.write(2, f"\n{signal.Signals(number).name}: finishing the step, then saving\n".encode())


def _save_only() -> tuple[int, ...]:
    return (signal.SIGTERM,) if "SLURM_JOB_ID" in os.environ else ()


def _in_worker(number: int) -> None:
    """A forked loader worker: what its group is told is not for it, but a second SIGTERM is its parent's."""
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_at_once() -> None:
    if sys.stderr.isatty():
        os.write(2, SHOW_CURSOR.encode())
    os.write(2, b"second Ctrl-C: leaving without saving\n")
    os._exit(128 + signal.SIGINT)
