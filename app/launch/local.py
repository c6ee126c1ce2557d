"""The local launcher: queues the jobs of a sweep over this machine's slots."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.types import TaskFunction
from omegaconf import DictConfig

from app.core.rank import Rank
from app.launch.job import DONE_STATE, PICKLE, RESULT, Job
from app.launch.queue import Queue, StopRequest
from app.launch.slots import Slot, environment, make_slots, threads_of
from app.launch.starter import Environment, choose_starter
from app.launch.watch import make_watcher
from app.launch.worker import name_of, pack


def require(options: dict[str, Any]) -> None:
    """Raises ConfigError, naming the key, where the slots cannot be had."""
    slots_of(options)


def at_work(folder: Path) -> bool:
    """Never: jobs of this machine end with their launcher."""
    return False


def run(options: dict[str, Any], task: TaskFunction, jobs: Sequence[Job], folder: Path, lock: int) -> StopRequest:
    """Queues the jobs that are not done; returns whether it was asked to stop."""
    slots = slots_of(options)
    waiting = [job for job in jobs if job.state != DONE_STATE]
    ranks = options["processes_per_job"] or max(1, len(slots[0].gpus))
    threads = threads_of(options["threads_per_process"], max(1, min(len(slots), len(waiting))) * ranks)
    preload = [name_of(task).split(":")[0], *options["preload"]]
    spawns = any(_start_method(job.config) != "fork" for job in waiting)
    stop = StopRequest()
    with stop.listening(), make_watcher(jobs, folder) as watcher, prepared(waiting, task):
        if waiting:
            place = rank_environment(threads, ranks)
            starter, how = choose_starter(options["start"], place, lock, preload, threads, spawns)
            watcher.message(f"{len(waiting)} jobs on {len(slots)} slots, started {how}")
            try:
                Queue(slots, starter, watcher, stop, ranks, options["grace_seconds"]).run(waiting)
            finally:
                starter.close()
    return stop


def slots_of(options: dict[str, Any]) -> list[Slot]:
    """The slots that the launcher's options ask for."""
    return make_slots(options["gpus"], options["gpus_per_job"], options["jobs_per_gpu"], options["cpu_slots"])


@contextmanager
def prepared(jobs: Sequence[Job], task: TaskFunction) -> Iterator[None]:
    """Each job's folder has what its processes read at their start."""
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / RESULT).unlink(missing_ok=True)
        (job.folder / PICKLE).write_bytes(pack(job.config, task))
        job.write_record()
    try:
        yield
    finally:
        for job in jobs:
            (job.folder / PICKLE).unlink(missing_ok=True)


def rank_environment(threads: int, ranks: int) -> Environment:
    """What a rank of a job in a slot gets: GPUs, threads, and the other ranks' address."""
    ports: dict[int, int] = {}

    def of(job: Job, slot: Slot, rank: int) -> dict[str, str]:
        values = environment(slot, threads)
        if ranks > 1:
            if rank == 0:
                ports[job.number] = free_port()
            values |= Rank(rank, ranks, rank, ranks, "127.0.0.1", ports[job.number]).variables()
        return values

    return of


def _start_method(config: DictConfig) -> str:
    return str(config.env.mp.start_method) if "env" in config else "fork"


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
