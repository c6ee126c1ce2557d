"""What runs on the nodes: every process of a SLURM job unpickles this and calls it."""

from __future__ import annotations

import os
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.rank import adopt
from app.files import write_json
from app.launch.job import OUTPUT, RESULT
from app.launch.worker import run_task
from app.runs.folder import wait_until_free

PATIENCE_SECONDS = 120.0
"""For the processes of the launch before a requeue to be gone."""

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission


class Task:
    """One point of a sweep: its config as it was at submission, whatever is edited until it starts, and its folder."""

    def __init__(self, content: bytes, folder: str) -> None:
        self.content = content
        self.folder = folder

    def __call__(self) -> None:
        """Runs the job; leaves the result in its folder, and with its exit code."""
        from submitit.slurm.slurm import SlurmJobEnvironment

        environment = SlurmJobEnvironment()
        rank, folder = environment.global_rank, Path(self.folder)
        redirect_output(folder / (OUTPUT if rank == 0 else f"stdout.rank{rank}.log"))
        if rank == 0:
            forget_torn_requeue(environment.paths.submitted_pickle)
            if "SLURM_RESTART_COUNT" in os.environ:
                wait_until_free(folder, PATIENCE_SECONDS)
        content = pickle.loads(self.content)
        adopt()
        started = time.monotonic()
        code, result = run_task(content["config"], content["task"], content["version_base"], rank)
        if rank == 0:
            result |= {"exit_code": code, "seconds": time.monotonic() - started}
            write_json(folder / RESULT, result)
        if code:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts back into the queue when the job is preempted or out of time: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def redirect_output(path: Path) -> None:
    """Appends standard output and error to a file in the job's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def forget_torn_requeue(submitted: Path) -> None:
    """Removes what a kill while submitit wrote its pickle has left: with it, every later requeue would fail."""
    submitted.with_suffix(submitted.suffix + ".save_tmp").unlink(missing_ok=True)
