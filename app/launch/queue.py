"""The local queue: jobs wait, take the first free slot, run in processes of their own, and end."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from app.launch.job import INTERRUPTED, RUNNING, Job
from app.launch.slots import Slot

Key = tuple[int, int]
"""A process: (job number, rank)."""


class Starter(Protocol):
    """Starts processes and says which have ended."""

    def start(self, key: Key, job: Job, slot: Slot) -> None: ...

    def wait(self, timeout_seconds: float) -> list[tuple[Key, int]]:
        """The processes that have ended since the last call, with their exit code or minus their signal."""
        ...

    def signal(self, key: Key, signum: int) -> None:
        """SIGKILL reaches everything that the process has started, other signals only itself."""
        ...

    def close(self) -> None:
        """Kills what still runs."""
        ...


class Watcher(Protocol):
    """Is told what happens: the table, the report."""

    def started(self, job: Job, place: str) -> None: ...

    def ended(self, job: Job) -> None: ...

    def tick(self) -> None:
        """Called a few times a second."""
        ...

    def message(self, text: str) -> None: ...


class StopRequest:
    """Counts the requests to stop: Ctrl-C, SIGTERM, a closed terminal."""

    def __init__(self) -> None:
        self.count = 0
        self.signum = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over SIGINT, SIGTERM and SIGHUP, and gives them back."""
        before = {number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self.signum = signum


@dataclass
class Running:
    """A job in its slot."""

    job: Job
    slot: Slot
    alive: set[int]
    """Ranks that still run."""
    since: float = field(default_factory=time.monotonic)
    status: int = 0
    """Of the first rank that failed, else 0."""
    kill_at: float | None = None


@dataclass
class Queue:
    """Runs jobs over slots, first come, first served.

    A job ends when all its ranks have; when one fails, the others are asked to leave. After a request to stop, nothing
    is started any more, the running ones are asked to save and leave, and killed after `grace_seconds` or at the second
    request.
    """

    slots: Sequence[Slot]
    starter: Starter
    watcher: Watcher
    stop: StopRequest
    ranks: int = 1
    grace_seconds: float = 60.0
    running: dict[int, Running] = field(default_factory=dict)
    stopping: bool = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Returns when every job has ended or, after a request to stop, none runs any more."""
        waiting = deque(jobs)
        free = deque(self.slots)
        while self.running or (waiting and not self.stop.count):
            ended = []
            for (number, rank), status in self.starter.wait(0.1) if self.running else ():
                entry = self.running[number]
                self._rank_ended(entry, rank, status)
                if not entry.alive:
                    free.append(entry.slot)
                    ended.append(entry.job)
            while waiting and free and not self.stop.count:
                self._start(waiting.popleft(), free.popleft())
            for job in ended:  # only now: a slot does not wait for a report to be written
                job.write_record()
                self.watcher.ended(job)
            self._stop_if_asked()
            self._kill_overdue()
            self.watcher.tick()
        for job in waiting:
            job.state = INTERRUPTED

    def _start(self, job: Job, slot: Slot) -> None:
        job.state = RUNNING
        job.launches += 1
        job.write_record()
        self.running[job.number] = Running(job, slot, set(range(self.ranks)))
        for rank in range(self.ranks):
            self.starter.start((job.number, rank), job, slot)
        self.watcher.started(job, slot.name)

    def _rank_ended(self, entry: Running, rank: int, status: int) -> None:
        entry.alive.discard(rank)
        entry.status = entry.status or status
        if status and entry.alive and entry.kill_at is None:
            self._ask_to_leave(entry)
        if not entry.alive:
            del self.running[entry.job.number]
            entry.job.end(entry.status, time.monotonic() - entry.since, self.stopping)

    def _stop_if_asked(self) -> None:
        if self.stop.count and not self.stopping:
            self.stopping = True
            name = signal.Signals(self.stop.signum).name
            self.watcher.message(f"{name}: {len(self.running)} jobs save and leave; once more to kill them")
            for entry in self.running.values():
                self._ask_to_leave(entry)
        if self.stop.count > 1:
            for entry in self.running.values():
                entry.kill_at = -1.0

    def _ask_to_leave(self, entry: Running) -> None:
        entry.kill_at = time.monotonic() + self.grace_seconds
        for rank in entry.alive:
            self.starter.signal((entry.job.number, rank), signal.SIGTERM)

    def _kill_overdue(self) -> None:
        for entry in self.running.values():
            if entry.kill_at is not None and time.monotonic() > entry.kill_at:
                entry.kill_at = time.monotonic() + 5.0
                for rank in entry.alive:
                    self.starter.signal((entry.job.number, rank), signal.SIGKILL)
