"""All backends behind one visualizer. None of them can hurt the run: not by an error, not by hanging.

`local` is called directly: it only appends lines to files. Every other backend lives in a daemon thread of its own,
fed through a bounded queue. One that raises, or that does not keep up, is named in one warning and left alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.ranks import World
from app.visualizer.base import Backend, Visualizer

logger = logging.getLogger(__name__)

QUEUE_CALLS = 10_000
"""Calls that may wait for a backend before it is given up."""
QUEUE_BYTES = 256 * 2**20
"""The same for the pictures in them."""
STALL_SECONDS = 10.0
"""At the end, a backend that did nothing at all for so long in one call is not waited for."""
SYNC_SECONDS = 5.0
"""Before a checkpoint, all threads together may take this long to bring their rows to the disk."""
CLOSE_SECONDS = 60.0
"""At the end, a backend that still works through its queue or uploads may take this long."""


def build(backends: Mapping[str, Backend], world: World) -> Visualizer:
    """The fan-out over `backends` by name; over none on any rank but the main one."""
    return Fanout(backends if world.is_main else {})


class Fanout:
    """See `Visualizer`."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        stall_seconds: float = STALL_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
        sync_seconds: float = SYNC_SECONDS,
    ) -> None:
        self.stall_seconds, self.close_seconds, self.sync_seconds = stall_seconds, close_seconds, sync_seconds
        self.direct = [Direct(name, one) for name, one in backends.items() if getattr(one, "synchronous", False)]
        self.threaded = [
            Threaded(name, one) for name, one in backends.items() if not getattr(one, "synchronous", False)
        ]
        self.members: list[Direct | Threaded] = [*self.direct, *self.threaded]
        self.closed = False

    def config(self, config: Mapping[str, Any]) -> None:
        self._call("config", config)

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self._call("scalars", dict(values), step, epoch)

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        pictures = list(images)
        self._call("images", name, pictures, list(captions), step, size=sum(picture.nbytes for picture in pictures))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self._call("table", name, columns, rows, step)

    def rewind(self, step: int) -> None:
        self._call("rewind", step)

    def flush(self) -> None:
        """Flush without waiting for the threads: a kill just now may cost a tracker some rows, never `local`."""
        self._call("flush")

    def sync(self) -> None:
        """Bring every row so far to the disk, so that a checkpoint's curves reach as far as it does.

        Called before a checkpoint's manifest is written, from the thread that writes it. Only backends with a method
        `sync` have files that matter; the wait for those with a thread of their own is bounded.
        """
        deadline = monotonic() + self.sync_seconds
        for member in self.members:
            if hasattr(member.backend, "sync"):
                member.sync(deadline)

    def close(self, summary: Mapping[str, float]) -> None:
        """Close all backends; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._call("close", dict(summary))
        deadline = monotonic() + self.close_seconds
        for member in self.threaded:
            member.wait_until_closed(deadline, self.stall_seconds)

    def _call(self, method: str, *args: Any, size: int = 0) -> None:
        for member in self.members:
            member.call(method, args, size)


class Direct:
    """A backend called in the caller's thread. An error is warned of once; later calls are still tried."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self.warned = False

    def call(self, method: str, args: tuple[Any, ...], size: int) -> None:
        try:
            getattr(self.backend, method)(*args)
        except Exception as error:
            if not self.warned:
                self.warned = True
                logger.warning(
                    "visualizer.%s failed in %s (%s); training goes on, what it could not write is missing",
                    self.name,
                    method,
                    described(error),
                )

    def sync(self, deadline: float) -> None:
        self.call("sync", (), 0)


class Threaded:
    """A backend in a thread of its own, until it fails, falls behind or is closed."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self.calls: queue.SimpleQueue[tuple[str, tuple[Any, ...], int]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()
        self.waiting_bytes = 0
        self.dropped = False
        self.present = ""
        self.done = 0
        self.closed = threading.Event()
        self.synced = threading.Event()
        self.synced.set()

    def call(self, method: str, args: tuple[Any, ...], size: int) -> None:
        """Hand the call to the thread; costs some microseconds."""
        if self.dropped:
            return
        if self.calls.qsize() >= QUEUE_CALLS or self.waiting_bytes + size > QUEUE_BYTES:
            self.drop(f"does not keep up: {self.calls.qsize()} calls are waiting")
            return
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name=f"visualizer.{self.name}", daemon=True)
            self.thread.start()
        if size:
            with self.lock:
                self.waiting_bytes += size
        self.calls.put((method, args, size))

    def sync(self, deadline: float) -> None:
        """Let the thread sync, and wait for it; not for one that has not done so for the save before."""
        if self.thread is None or not self.synced.is_set():
            return
        self.synced.clear()
        self.call("sync", (), 0)
        if not self.dropped:
            self.synced.wait(max(0.0, deadline - monotonic()))

    def wait_until_closed(self, deadline: float, stall_seconds: float) -> None:
        """Wait for `close` as long as the backend gets on: ends calls, or computes, as slow as the machine may be."""
        seen, since = self._activity(), monotonic()
        while not (self.dropped or self.closed.wait(0.02)):
            now, activity = monotonic(), self._activity()
            if activity != seen:
                seen, since = activity, now
            if now > deadline or (self.present != "close" and now - since > stall_seconds):
                self.drop(f"hangs in {self.present}" if self.present else "does not get on")

    def _activity(self) -> tuple[int, int]:
        """Calls done, and tenths of a second that the thread computed (where the system tells)."""
        thread, seconds = self.thread, 0.0
        if (
            thread is not None
            and thread.ident is not None
            and thread.is_alive()
            and hasattr(time, "pthread_getcpuclockid")
        ):
            seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return self.done, int(10 * seconds)

    def drop(self, reason: str) -> None:
        """Give the backend up, with one warning."""
        with self.lock:
            if self.dropped:
                return
            self.dropped = True
        self.synced.set()
        logger.warning("visualizer.%s %s; it is switched off, training goes on without it", self.name, reason)

    def _work(self) -> None:
        while not self.dropped:
            method, args, size = self.calls.get()
            self.present = method
            try:
                getattr(self.backend, method)(*args)
            except Exception as error:
                self.drop(f"failed in {method} ({described(error)})")
            self.present = ""
            self.done += 1
            if size:
                with self.lock:
                    self.waiting_bytes -= size
            if method == "sync":
                self.synced.set()
            if method == "close":
                self.closed.set()
                return


def described(error: BaseException) -> str:
    """Type and first line of an error's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
