"""The local launcher: composes and checks all jobs, then queues them over this machine's slots."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from app.errors import RunError
from app.launch.compose import compose
from app.launch.job import DONE_STATE, FAILED, PICKLE, RESULT, Job
from app.launch.queue import Queue, StopRequest
from app.launch.slots import Slot, environment, make_slots, threads_of
from app.launch.starter import Environment, choose_starter
from app.launch.sweep import held, summary_error
from app.launch.watch import make_watcher
from app.launch.worker import name_of, pack


def launch(
    options: dict[str, Any],
    context: HydraContext,
    task: TaskFunction,
    master: DictConfig,
    points: Sequence[Sequence[str]],
    first_number: int,
) -> list[JobReturn]:
    """Runs all points; what Hydra's sweepers expect of a launcher.

    Raises:
        ConfigError: some point's config is wrong; then none was started.
        SystemExit: 128 + signal after a request to stop.
    """
    setup_globals()
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    folder = Path(master.hydra.sweep.dir)
    slots = make_slots(options["gpus"], options["gpus_per_job"], options["jobs_per_gpu"], options["cpu_slots"])
    with held(folder, options["grace_seconds"] + 10.0) as lock:
        jobs = compose(context.config_loader, master, points, first_number)
        stop = run(options, task, jobs, slots, folder, lock)
    if stop.count:
        raise SystemExit(128 + stop.signum)
    error = summary_error(jobs)
    return [job_return(job, error) for job in jobs]


def run(
    options: dict[str, Any], task: TaskFunction, jobs: Sequence[Job], slots: Sequence[Slot], folder: Path, lock: int
) -> StopRequest:
    """Queues the jobs that are not done; returns whether it was asked to stop."""
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
            port = free_port() if rank == 0 else ports[job.number]
            ports[job.number] = port
            values |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            values |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return values

    return of


def _start_method(config: DictConfig) -> str:
    return str(config.env.mp.start_method) if "env" in config else "fork"


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def job_return(job: Job, error: RunError) -> JobReturn:
    """What a sweeper reads: the value of a job that is done, `error` for one that failed."""
    result = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=str(job.folder), task_name="app")
    result.status = JobStatus.FAILED if job.state == FAILED else JobStatus.COMPLETED
    result.return_value = error if job.state == FAILED else job.value
    return result
