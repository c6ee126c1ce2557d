"""The SLURM launcher: submits each point of a sweep as a job of an array, and collects what becomes of them."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf

from app.errors import ConfigError, TemporaryError
from app.files import read_json
from app.launch import squeue
from app.launch.job import FAILED, RESULT, RUNNING, WAITING, Job, finished
from app.launch.processes import python_environment
from app.launch.task import SlurmTask
from app.launch.watch import Lines

if TYPE_CHECKING:
    from app.launch.launcher import StopRequest

SLURM_RECORD = "slurm.json"
COMMANDS = ("sbatch", "srun", "squeue", "scontrol")


def require(options: dict[str, Any]) -> None:
    """Raises ConfigError where there is no SLURM, or no time to save before the time limit."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher=slurm: no SLURM on this machine, {', '.join(missing)} not found in PATH; "
            "log in to the cluster, or use hydra/launcher=local"
        )
    if options["signal_delay_s"] >= 60 * options["timeout_min"]:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={options['signal_delay_s']} must be less than the time limit, "
            f"timeout_min={options['timeout_min']} minutes"
        )


def at_work(folder: Path) -> bool:
    """Whether a job of the sweep in `folder` is in SLURM's queue."""
    ids = [str((read_json(path) or {}).get("job")) for path in folder.glob(f"*/{SLURM_RECORD}")]
    states = squeue.states() if ids else {}
    return any(squeue.is_active(states.get(job_id)) for job_id in ids)


def run(options: dict[str, Any], jobs: Sequence[Job], watcher: Lines, stop: StopRequest, lock: int) -> None:
    """Submit what is not queued; with `wait`, return when all have ended or at Ctrl-C, else at once.

    Raises:
        ConfigError: SLURM refuses the jobs.
    """
    ids = find_queued(jobs, watcher)
    new = [job for job in jobs if job.number not in ids]
    ids |= submit(options, new)
    watcher.message(f"{len(new)} jobs submitted, {len(ids) - len(new)} were in the queue already")
    if options["wait"]:
        collect(jobs, ids, watcher, stop, options)
    if stop.count:
        watcher.message(f"the jobs go on; to end them: {scancel_hint(ids)}")


def find_queued(jobs: Sequence[Job], watcher: Lines) -> dict[int, str]:
    """SLURM's ids of the jobs that an earlier launch has submitted and that have not ended, by job number."""
    states = squeue.states()
    queued = {}
    for job in jobs:
        record = read_json(job.folder / SLURM_RECORD)
        if record and squeue.is_active(states.get(str(record.get("job")))):
            queued[job.number] = record["job"]
            watcher.message(f"#{job.number} {job.name} is in the queue already, as {record['job']}")
    return queued


def submit(options: dict[str, Any], jobs: Sequence[Job]) -> dict[int, str]:
    """Submits the jobs, as arrays no larger than the cluster allows; returns SLURM's ids by job number."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = make_executor(options)
    size = squeue.max_array_size()
    ids: dict[int, str] = {}
    for start in range(0, len(jobs), size):
        chunk = jobs[start : start + size]
        try:
            tasks = [SlurmTask(job.begin(WAITING), str(job.folder.absolute())) for job in chunk]
            submitted = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise ConfigError(f"hydra/launcher=slurm: sbatch refuses the job: {reason_of(error)}") from error
        for job, handle in zip(chunk, submitted, strict=True):
            ids[job.number] = handle.job_id
            job.write(SLURM_RECORD, {"job": handle.job_id, "submitted": time.time()})
            job.write_record()
    return ids


def make_executor(options: dict[str, Any]) -> Any:
    """Make submitit's executor; the options are its parameters, as those of hydra-submitit-launcher are."""
    from submitit import AutoExecutor

    folder = Path(options["submitit_folder"]).absolute()
    own = {"max_num_timeout": options["max_num_timeout"], "python": options["python"]}
    executor = AutoExecutor(folder, "slurm", **{f"slurm_{name}": value for name, value in own.items()})
    common = {field.name for field in fields(BaseQueueConf)} - {"submitit_folder"}
    specific = {field.name for field in fields(SlurmQueueConf)} - common - {"_target_", "submitit_folder", *own}
    executor.update_parameters(
        **{name: options[name] for name in common},
        **{f"slurm_{name}": options[name] for name in specific - {"additional_parameters", "setup"}},
        slurm_additional_parameters={"requeue": True, **options["additional_parameters"]},
        slurm_setup=[
            f"export PYTHONPATH={shlex.quote(python_environment()['PYTHONPATH'])}",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',  # srun of 22.05 to 23.02 does not inherit it
            *options["setup"],
        ],
    )
    return executor


def reason_of(error: Exception) -> str:
    """sbatch's own words in submitit's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "sbatch: error" in line), lines[-1] if lines else type(error).__name__)


def collect(
    jobs: Sequence[Job], ids: dict[int, str], watcher: Lines, stop: StopRequest, options: dict[str, Any]
) -> None:
    """Waits for the jobs to end, each by itself; returns early after a request to stop.

    A job counts as ended when two looks in a row find it so: a requeued one is between states for a moment.
    """
    open_jobs = {job.number: job for job in jobs}
    suspected: set[int] = set()
    known_reason = ""
    while open_jobs and not stop.count:
        try:
            states = squeue.states(set(ids.values()))
        except TemporaryError as error:  # the jobs do not need the answer; the next one will do
            watcher.message(f"{error}; asking on")
            time.sleep(1.0)
            continue
        for number, job in list(open_jobs.items()):
            state = states.get(ids[number])
            if state == "RUNNING" and job.state != RUNNING:
                job.state = RUNNING
                job.write_record()
                watcher.started(job, f"SLURM job {ids[number]}")
            elif state == "PENDING" and job.state == RUNNING:
                job.state = WAITING
                watcher.message(f"#{job.number} {job.name} is back in the queue")
            if squeue.is_active(state):
                suspected.discard(number)
            elif number in suspected or (job.folder / RESULT).exists():
                del open_jobs[number]
                end(job, state, ids[number], options)
                watcher.ended(job)
            else:
                suspected.add(number)
        if open_jobs and all(job.state == WAITING for job in open_jobs.values()):
            reason = squeue.reasons(ids.values())
            if reason not in ("", known_reason):
                watcher.message(f"{len(open_jobs)} jobs are pending in SLURM's queue: {reason}")
                known_reason = reason
        poll_seconds = options["poll_seconds"]
        deadline = time.monotonic() + (min(poll_seconds, 1.0) if suspected else poll_seconds)
        while open_jobs and not stop.count and time.monotonic() < deadline:
            time.sleep(0.1)
            watcher.tick()


def end(job: Job, state: str | None, job_id: str, options: dict[str, Any]) -> None:
    """Takes over how a SLURM job ended: by what it left, else by SLURM's word for it."""
    result = read_json(job.folder / RESULT)
    # Without a result it never reached Python, was killed, or found the disk full after its DONE.json.
    done = result is None and finished(job.folder, job.length) is not None
    status = 0 if done else int((result or {}).get("exit_code", 1))
    job.end(status, float((result or {}).get("seconds", 0.0)))
    if result is None and not done:
        job.state, job.reason = FAILED, f"SLURM job {job_id}: {state or 'gone'}"
        job.error = first_error(script_log(options, job_id)) or job.error
    job.write_record()


def script_log(options: dict[str, Any], job_id: str) -> Path:
    """Name the file that submitit gives the output of a job's script; with stderr_to_stdout=false, its errors."""
    folder = Path(options["submitit_folder"].replace("%j", job_id))
    return folder / f"{job_id}_0_log.{'out' if options['stderr_to_stdout'] else 'err'}"


def first_error(log: Path) -> str | None:
    """What SLURM or the shell complained about in the log of the job's script."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line for line in lines if "error:" in line or "not found" in line), None)


def scancel_hint(ids: dict[int, str]) -> str:
    """The command that ends the jobs."""
    return shlex.join(["scancel", *sorted({job_id.split("_")[0] for job_id in ids.values()})])
