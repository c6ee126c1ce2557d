"""Loader workers: processes that read batches ahead, and what happens when one of them dies or hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count as count_from
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import torch

from app.core.ranks import process_state
from app.data.channel import Channel, receive, send
from app.data.fetch import Fetched, Fetcher
from app.data.order import Request
from app.data.source import describe
from app.errors import DataError
from app.process import follow_parent

POLL_SECONDS = 1.0
"""How often a waiting process looks whether its worker still lives."""
READ_AHEAD = 2
"""Requests that a worker has been given and that are not used yet."""
LEAVE_SECONDS = 1.0
"""How long an idle worker may take to leave by itself."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Worker:
    """One process and the channel to it."""

    def __init__(self, fetcher: Fetcher, number: int, status: Any, start_method: str) -> None:
        self.number = number
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        process: Any = multiprocessing.get_context(start_method).Process  # type: ignore[attr-defined]
        parent = None if start_method == "forkserver" else os.getpid()  # otherwise the server is its parent
        self.process = process(target=serve, args=(fetcher, theirs, status, number, parent), daemon=True)
        self.process.start()
        theirs.close()  # only the worker has it now: its end is seen here

    def end(self, at_once: bool) -> None:
        """Lets an idle process leave by itself, and kills it otherwise: it holds no state."""
        if not at_once:
            self.channel.post(None)
            self.process.join(LEAVE_SECONDS)
        self.process.kill()  # not terminate(): workers ignore SIGTERM
        self.process.join()
        self.channel.close()


class Workers:
    """`count` loader processes that read requests in turn; with `count=0` this process does."""

    def __init__(self, fetcher: Fetcher, *, count: int, timeout_seconds: float, start_method: str) -> None:
        self._fetcher, self._timeout_seconds = fetcher, timeout_seconds
        self._count, self._start_method = count, start_method
        self._status = multiprocessing.RawArray("q", [-1] * count) if count else None
        self._workers: list[Worker] = []
        self._serial = count_from()
        self.busy = False
        """A read is under way."""
        self.broken = False
        """A worker died or hung."""

    def read(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        """What was fetched for each request, in order, some of it ahead.

        Raises:
            DataError: a worker died, or did not answer for `timeout_seconds`.
        """
        if not self._count:
            for request in requests:
                yield request, self._fetcher.fetch(request.indices.tolist(), request.epoch, request.recipe)
            return
        self.busy = True
        try:
            if not self._workers:
                self._start()
            asked: deque[tuple[Worker, int, Request]] = deque()
            for worker in self._workers * READ_AHEAD:
                self._ask(worker, requests, asked)
            while asked:
                worker, serial, request = asked.popleft()
                fetched = self._wait(worker, serial)
                self._ask(worker, requests, asked)
                yield request, fetched
        finally:
            self.busy = False

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.end(at_once=self.busy or self.broken)
        self._workers.clear()

    def _start(self) -> None:
        for number in range(self._count):
            self._workers.append(Worker(self._fetcher, number, self._status, self._start_method))
        # multiprocessing would wait at exit for ever: it sends SIGTERM, which they ignore.
        Finalize(self, _kill, args=(self._workers,), exitpriority=100)

    def _ask(self, worker: Worker, requests: Iterator[Request], asked: deque[tuple[Worker, int, Request]]) -> None:
        for request in islice(requests, 1):
            serial = next(self._serial)
            # A list: a tensor would be sent with all of the epoch's order, of which it is a view.
            worker.channel.post((serial, request.indices.tolist(), request.epoch, request.recipe))
            asked.append((worker, serial, request))

    def _wait(self, worker: Worker, serial: int) -> Fetched:
        waited = 0.0
        while True:
            while (taken := worker.channel.take()) is not None:
                (answered, rest), tensors = taken
                if answered == serial:
                    return Fetched(*(tensors or (torch.empty(0), torch.empty(0))), *rest)
                waited = 0.0  # that was for an epoch that was left; now it turns to this one
            dead = worker.channel.closed or not worker.process.is_alive()
            begin = time.monotonic()
            came = worker.channel.exchange(0 if dead else POLL_SECONDS)
            if dead and not came:  # all that it sent before is used
                self.broken = True
                raise DataError(self._death(worker))
            # Not all the time that has passed: this process may have been stopped meanwhile, by Ctrl-Z for instance.
            waited += min(time.monotonic() - begin, POLL_SECONDS)
            if 0 < self._timeout_seconds <= waited:
                self.broken = True
                raise DataError(self._silence(worker, waited))

    def _silence(self, worker: Worker, waited: float) -> str:
        state = process_state(worker.process.pid)
        who = f"{self._who(worker)}, {state}" if state else self._who(worker)
        return f"{who}: no answer for {waited:.0f} seconds (data.timeout={self._timeout_seconds:g})"

    def _death(self, worker: Worker) -> str:
        worker.process.join(LEAVE_SECONDS)
        code = worker.process.exitcode or 0
        if code == -signal.SIGKILL:
            cause = ". Killed for lack of memory is the usual cause: lower data.num_workers or data.batch_size"
        else:
            cause = f" with {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"
        return f"{self._who(worker)} died{cause}"

    def _who(self, worker: Worker) -> str:
        assert self._status is not None
        sample = self._status[worker.number]
        doing = f"reading {describe(self._fetcher.source, sample)}" if sample >= 0 else "waiting for work"
        return f"data: loader worker {worker.number} (pid {worker.process.pid}), {doing}"


def serve(fetcher: Fetcher, connection: socket.socket, status: Any, number: int, parent: int | None) -> None:
    """What a worker does: reads what is asked for, until it is told to leave or its parent ends."""
    for name in IGNORED:  # signals for the run are the main process's to handle
        signal.signal(name, signal.SIG_IGN)
    follow_parent(signal.SIGKILL, parent)
    torch.set_num_threads(1)
    fetcher.note = lambda sample: status.__setitem__(number, sample)
    main = multiprocessing.parent_process()
    assert main is not None
    with suppress(EOFError, ConnectionError):
        while wait([connection, main.sentinel]) == [connection]:
            asked = receive(connection)
            if asked is None:
                return
            serial, *arguments = asked
            fetched = fetcher.fetch(*arguments)
            tensors = (fetched.images, fetched.targets) if fetched.failure is None else ()
            send(connection, (serial, fetched[2:]), tensors)


def _kill(workers: list[Worker]) -> None:
    for worker in workers:
        worker.end(at_once=True)
