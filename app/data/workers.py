"""torch's DataLoader, and what happens when one of its workers dies or hangs."""

from __future__ import annotations

import copy
import functools
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from app.data.reader import Loaded, Reader, Request
from app.data.source import describe
from app.errors import DataError
from app.process import follow_parent

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often a waiting process looks whether its workers still live."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Workers:
    """Some loader processes that read requests in order; with `count=0` this process does."""

    def __init__(self, reader: Reader, count: int, timeout_seconds: float, start_method: str) -> None:
        self.reader, self.timeout_seconds = copy.copy(reader), timeout_seconds
        self._requests: Iterator[Request] = iter(())
        self._status = multiprocessing.RawArray("q", 2 * count) if count else None
        self.reader.status = self._status
        options: dict[str, Any] = {}
        if count:
            start = functools.partial(start_worker, self._status, os.getpid())
            options = {"worker_init_fn": start, "multiprocessing_context": start_method, "timeout": POLL_SECONDS}
        with _many_workers_allowed():
            self._loader: Any = DataLoader(
                self.reader,
                batch_size=None,
                sampler=self,
                num_workers=count,
                collate_fn=as_it_is,
                persistent_workers=count > 0,
                generator=torch.Generator(),  # its own, so that starting to read draws no global random number
                **options,
            )
        self.busy = False
        """A read is under way."""
        self.broken = False
        """A worker died or hung."""

    def __iter__(self) -> Iterator[Request]:
        """DataLoader's view: what to read next."""
        return self._requests

    def read(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        """What was read for each request, in order, some read ahead.

        Raises:
            DataError: a worker died, or none answered for `timeout_seconds`.
        """
        asked: list[Request] = []
        self._requests = (asked.append(request) or request for request in requests)  # type: ignore[func-returns-value]
        self.busy = True
        try:
            with _own_child_handler(), _many_workers_allowed():
                iterator = iter(self._loader)
            while (loaded := self._next(iterator, asked)) is not None:
                asked.pop(0)
                yield loaded
        finally:
            self.busy = False

    def close(self) -> None:
        """Ends the processes: idle ones by DataLoader's own way, others at once; they hold no state."""
        if self.busy or self.broken:
            self._kill()
        self._loader = None
        self._kill()

    def _next(self, iterator: Any, asked: list[Request]) -> Loaded | None:
        begin = time.monotonic()
        while True:
            try:
                loaded: Loaded = next(iterator)
                return loaded
            except StopIteration:
                return None
            except RuntimeError as error:  # DataLoader has no other type for a silent or dead worker
                message = str(error)
            waited = time.monotonic() - begin
            if "timed out" not in message:
                self.broken = True
                raise DataError(self._death(message))
            if 0 < self.timeout_seconds <= waited:
                self.broken = True
                raise DataError(self._silence(asked[0], waited))

    def _death(self, message: str) -> str:
        found = re.search(r"pid\(s\) ([\d, ]+)", message)
        if found is None:
            return f"data: the loader workers failed: {message}"
        pids = [int(pid) for pid in found[1].split(",")]
        return (
            "; ".join(f"data: {self._who(pid)} died" for pid in pids)
            + ". Killed for lack of memory is the usual cause: lower data.num_workers or data.batch_size"
        )

    def _silence(self, request: Request, waited: float) -> str:
        samples = {entry % len(self.reader.source) for entry in request.indices}
        assert self._status is not None
        pids = [self._status[i] for i in range(0, len(self._status), 2) if self._status[i + 1] in samples]
        who = "; ".join(self._who(pid) for pid in pids) or "no loader worker"
        return f"data: {who}: no answer for {waited:.0f} seconds (data.timeout={self.timeout_seconds:g})"

    def _who(self, pid: int) -> str:
        assert self._status is not None
        pids = list(self._status[::2])
        number = pids.index(pid) if pid in pids else -1
        sample = self._status[2 * number + 1] if number >= 0 else -1
        doing = f"reading {describe(self.reader.source, sample)}" if sample >= 0 else "waiting for work"
        return f"loader worker {number} (pid {pid}), {doing}"

    def _kill(self) -> None:
        """SIGKILL to what is left: workers ignore SIGTERM, for which multiprocessing would wait at exit for ever."""
        pids = set(self._status[::2]) if self._status is not None else set()
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.kill()
                process.join()


def start_worker(status: Any, parent: int, number: int) -> None:
    """Runs first in a worker: signals for the run are the main process's to handle; no worker outlives it."""
    for name in IGNORED:
        signal.signal(name, signal.SIG_IGN)
    forked = multiprocessing.get_start_method(allow_none=True) == "fork"  # otherwise a server starts the workers
    follow_parent(signal.SIGKILL, parent if forked else None)
    status[2 * number], status[2 * number + 1] = os.getpid(), -1


def as_it_is(loaded: Any) -> Any:
    """Collates nothing: the reader gives whole batches."""
    return loaded


@contextmanager
def _own_child_handler() -> Iterator[None]:
    """Keeps torch's SIGCHLD handler out: for a dead worker it raises wherever the main thread is, even in a save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def _many_workers_allowed() -> Iterator[None]:
    """No warning about more workers than cores: they may wait for disks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
