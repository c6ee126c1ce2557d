"""`hydra/launcher=local`: jobs wait for a slot of this machine, run in processes of their own, and end."""

from __future__ import annotations

import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.core.rank import Rank
from app.errors import IO
from app.launch.job import INTERRUPTED, PICKLE, RUNNING, Job
from app.launch.processes import Processes, start_processes
from app.launch.slots import Slot, environment, make_slots, threads_of
from app.launch.watch import Lines

if TYPE_CHECKING:
    from app.launch.launcher import StopRequest


def require(options: dict[str, Any]) -> None:
    """Raise ConfigError, naming the key, where the slots cannot be had."""
    slots_of(options)


def at_work(folder: Path) -> bool:
    """Return False: jobs of this machine end with their launcher."""
    return False


def run(options: dict[str, Any], jobs: Sequence[Job], watcher: Lines, stop: StopRequest, lock: int) -> None:
    """Queue the jobs; return when all have ended or, after a request to stop, none runs any more."""
    slots = slots_of(options)
    ranks = options["processes_per_job"] or max(1, len(slots[0].gpus))
    threads = threads_of(options["threads_per_process"], max(1, min(len(slots), len(jobs))) * ranks)
    if not jobs:
        return
    processes, how = start_processes(options, jobs, threads, lock)
    watcher.message(f"{len(jobs)} jobs on {len(slots)} slots, started {how}")
    try:
        Queue(slots, processes, watcher, stop, ranks, threads, options["grace_seconds"]).run(jobs)
    finally:
        processes.close()
        for job in jobs:
            (job.folder / PICKLE).unlink(missing_ok=True)


def slots_of(options: dict[str, Any]) -> list[Slot]:
    """Make the slots that the launcher's options ask for."""
    return make_slots(options["gpus"], options["gpus_per_job"], options["jobs_per_gpu"], options["cpu_slots"])


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
    error: str | None = None
    """Why it could not be started."""
    kill_at: float | None = None


@dataclass
class Queue:
    """Runs jobs over slots, first come, first served.

    A job ends when all its ranks have; when one fails, the others are asked to leave. After a request to stop, nothing
    is started any more, the running ones are asked to save and leave, and killed after `grace_seconds` or at the second
    request.
    """

    slots: Sequence[Slot]
    processes: Processes
    watcher: Lines
    stop: StopRequest
    ranks: int
    threads: int
    grace_seconds: float
    running: dict[int, Running] = field(default_factory=dict)
    ended: list[Job] = field(default_factory=list)
    """Jobs that are still to be recorded."""
    stopping: bool = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Return when every job has ended or, after a request to stop, none runs any more."""
        waiting = deque(jobs)
        self.free = deque(self.slots)
        for job in jobs:
            job.write_record()  # the report shows what waits
        while self.running or (waiting and not self.stop.count):
            for (number, rank), status in self.processes.wait(0.1) if self.running else ():
                self._rank_ended(self.running[number], rank, status)
            while waiting and self.free and not self.stop.count:
                self._start(waiting.popleft(), self.free.popleft())
            self._record_ended()  # only now: a slot does not wait for a report to be written
            self._stop_if_asked()
            self._kill_overdue()
            self.watcher.tick()
        for job in waiting:
            job.state = INTERRUPTED

    def _start(self, job: Job, slot: Slot) -> None:
        entry = self.running[job.number] = Running(job, slot, set(range(self.ranks)))
        self.watcher.started(job, slot.name)
        port = free_port() if self.ranks > 1 else None
        content = job.begin(RUNNING)
        job.write_record()
        started = 0
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / PICKLE).write_bytes(content)
            for rank in range(self.ranks):
                variables = environment(slot, self.threads)
                if port is not None:
                    variables |= Rank(rank, self.ranks, rank, self.ranks, "127.0.0.1", port).variables()
                self.processes.start((job.number, rank), job.folder, variables)
                started += 1
        except OSError as error:  # a full disk fails this point; there may be room again for the next one
            entry.error = (
                f"cannot start in {job.folder}: {error.strerror} (its settings alone need {len(content)} bytes)"
            )
            for rank in range(started, self.ranks):
                self._rank_ended(entry, rank, IO)

    def _rank_ended(self, entry: Running, rank: int, status: int) -> None:
        entry.alive.discard(rank)
        entry.status = entry.status or status
        if status and entry.alive and entry.kill_at is None:
            self._ask_to_leave(entry)
        if not entry.alive:
            del self.running[entry.job.number]
            entry.job.end(entry.status, time.monotonic() - entry.since, self.stopping, entry.error)
            self.ended.append(entry.job)
            self.free.append(entry.slot)

    def _record_ended(self) -> None:
        for job in self.ended:
            job.write_record()
            self.watcher.ended(job)
        self.ended.clear()

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
            self.processes.signal((entry.job.number, rank), signal.SIGTERM)

    def _kill_overdue(self) -> None:
        for entry in self.running.values():
            if entry.kill_at is not None and time.monotonic() > entry.kill_at:
                entry.kill_at = time.monotonic() + 5.0
                for rank in entry.alive:
                    self.processes.signal((entry.job.number, rank), signal.SIGKILL)


def free_port() -> int:
    """Find a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
