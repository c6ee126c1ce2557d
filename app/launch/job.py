"""One job of a sweep, and the record of it in its folder."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from app.errors import RunError
from app.files import read_json, write_json
from app.runs.folder import DONE

RECORD = "job.json"
PICKLE = ".job.pkl"
RESULT = ".result.json"
OUTPUT = "stdout.log"

logger = logging.getLogger(__name__)

WAITING, RUNNING, DONE_STATE, FAILED, INTERRUPTED = "waiting", "running", "done", "failed", "interrupted"


def name_of(task: Callable[..., Any]) -> str:
    """`module:function`; a function of `__main__` gets the name that its file has as a module."""
    module = task.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else Path(inspect.getfile(task)).stem
    return f"{module}:{task.__qualname__}"


def pack(config: DictConfig, task: str) -> bytes:
    """Pickle the config and the name of the task function for another interpreter."""
    from hydra import version

    return pickle.dumps({"config": config, "task": task, "version_base": str(version.getbase())})


@dataclass
class Job:
    """One point of a sweep during one launch."""

    number: int
    overrides: list[str]
    axes: dict[str, Any]
    """The settings that the sweep chose for it."""
    identity: str
    folder: Path
    config: DictConfig
    """Composed and checked, Hydra's node included."""
    task: str
    """The task function, as `name_of` names it."""
    state: str = WAITING
    launches: int = 0
    skipped: bool = False
    """It was done before this launch."""
    value: Any = None
    """What the task returned."""
    reason: str | None = None
    """How it failed: `exit code 65`, `killed by SIGKILL`."""
    error: str | None = None
    """The last error line."""
    exit_code: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def length(self) -> int | None:
        """How long it is to train; a finished job that is to train longer goes on."""
        return length_of(self.config)

    def write_record(self) -> None:
        """Write `job.json`, which a resumed sweep and the report read."""
        record = {
            "overrides": self.overrides,
            "axes": self.axes,
            "identity": self.identity,
            "length": self.length,
            "state": self.state,
            "reason": self.reason,
            "error": self.error,
            "exit_code": self.exit_code,
            "launches": self.launches,
            "seconds": round(self.seconds, 3),
        }
        self.write(RECORD, record)

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Write a record into the job's folder; a disk that does not take it is a warning, and the job goes on."""
        try:
            write_json(self.folder / name, record)
        except OSError as error:
            logger.warning("cannot write %s: %s", self.folder / name, error.strerror)

    def begin(self, state: str) -> bytes:
        """Count a launch, forget what the last one left, return the packed job."""
        self.state = state
        self.launches += 1
        with suppress(OSError):
            (self.folder / RESULT).unlink(missing_ok=True)
        return pack(self.config, self.task)

    def end(self, status: int, seconds: float, stopping: bool = False, error: str | None = None) -> None:
        """Take over how its process ended: `status` is the exit code, or minus the signal that killed it.

        What the job has left is read with mercy: a result that is lost is recovered from `DONE.json` or the log.
        """
        result = read_json(self.folder / RESULT) or {}
        with suppress(OSError):
            (self.folder / RESULT).unlink(missing_ok=True)
        self.seconds = seconds
        self.exit_code = status if status >= 0 else 128 - status
        if status == 0:
            done = finished(self.folder, self.length) or {}
            self.state, self.reason, self.error = DONE_STATE, None, None
            self.value = result.get("value", done.get("best"))
        else:
            left = stopping and self.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGKILL)
            self.state = INTERRUPTED if left else FAILED
            self.reason = describe_exit(status)
            self.error = error or result.get("error") or last_line(self.folder / OUTPUT)


def length_of(config: DictConfig) -> int | None:
    """How many epochs (iterations, when train.by_epoch=false) a run is to train."""
    train = config.get("train") or {}
    length = train.get("max_epochs" if train.get("by_epoch", True) else "max_iters")
    return None if length is None else int(length)


def finished(folder: Path, length: int | None) -> dict[str, Any] | None:
    """What the run in `folder` left when it finished, or None when it has not, or is to train longer now."""
    done = read_json(folder / DONE)
    reached = (done or {}).get("length")
    if length is not None and isinstance(reached, int) and reached < length:
        return None
    return done


def output_of(folder: Path, rank: int) -> Path:
    """Name the file that takes standard output and error of a rank."""
    return folder / (OUTPUT if rank == 0 else f"stdout.rank{rank}.log")


def describe_exit(status: int) -> str:
    """`killed by SIGKILL`, `exit code 65`; `status` as subprocess gives it."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def last_line(log: Path, tail_bytes: int = 8192) -> str | None:
    """The last line of `log` that says something, without terminal colours."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - tail_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", text)]
    return next((line[:500] for line in reversed(lines) if line), None)


def job_returns(jobs: Sequence[Job]) -> list[JobReturn]:
    """What a sweeper reads: the values of jobs that are done; for failed ones an error with their common exit code."""
    failed = [job for job in jobs if job.state == FAILED]
    codes = {job.exit_code for job in failed}
    error = RunError(
        f"{len(failed)} of {len(jobs)} jobs failed; the same command with resume=true tries them again",
        codes.pop() if len(codes) == 1 else 1,
    )
    returns = []
    for job in jobs:
        result = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=str(job.folder), task_name="app")
        result.status = JobStatus.FAILED if job.state == FAILED else JobStatus.COMPLETED
        result.return_value = error if job.state == FAILED else job.value
        returns.append(result)
    return returns


def read_records(sweep_folder: Path) -> dict[str, dict[str, Any]]:
    """`job.json` of every folder in a sweep's folder, by folder name; those that cannot be read are left out."""
    paths = (path for path in sorted(sweep_folder.glob(f"*/{RECORD}")) if not path.parent.is_symlink())
    records = {path.parent.name: read_json(path) or {} for path in paths}
    return {name: record for name, record in records.items() if isinstance(record.get("identity"), str)}
