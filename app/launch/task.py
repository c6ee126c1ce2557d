"""What each process of a job does: run the task function with the config that the launcher composed, leave the result.

`python -m app.launch.task FOLDER RANK PARENT`, or forked by app.launch.forkserver, or a `SlurmTask` called by submitit.
Hydra's own `run_job` does the work, so logging, callbacks and the `.hydra` snapshot are those of any Hydra job.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, open_dict, read_write

from app.core.rank import adopt
from app.errors import BUG, RunError, unwritable
from app.files import write_json
from app.launch.job import PICKLE, RESULT, output_of
from app.process import follow_parent, leave
from app.runs.folder import wait_until_free

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

IMPORTS = ("hydra.core.utils", "hydra._internal.callbacks", "hydra._internal.logging_config")
"""What every job imports before its task function."""
PATIENCE_SECONDS = 120.0
"""For the processes of the launch before a requeue to be gone."""

logger = logging.getLogger(__name__)


def run_and_leave(folder: Path, rank: int) -> NoReturn:
    """Run the job pickled in `folder` and end this process at once with its exit code: until then its slot is taken."""
    code: int | str | None = BUG
    try:
        code = run((folder / PICKLE).read_bytes(), folder, rank)
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    leave(code)


def run(content: bytes, folder: Path, rank: int) -> int:
    """Run the packed job; return the exit code. Rank 0 leaves `.result.json`."""
    started = time.monotonic()
    job = pickle.loads(content)
    code, result = run_task(job["config"], job["task"], job["version_base"], rank)
    if rank == 0:
        result |= {"exit_code": code, "seconds": time.monotonic() - started}
        try:
            write_json(folder / RESULT, result)
        except OSError as error:  # the exit code says most of it, and DONE.json the value
            logger.warning("cannot write %s: %s", folder / RESULT, error.strerror)
    return code


def run_task(config: DictConfig, task: str, version_base: str, rank: int) -> tuple[int, dict[str, Any]]:
    """Run the task; return the exit code and {value} or {error}. The task itself says what a RunError says."""
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobStatus, run_job, setup_globals
    from hydra.types import HydraContext

    version.setbase(version_base)
    setup_globals()
    module, _, name = task.partition(":")
    function = inspect.unwrap(getattr(importlib.import_module(module), name))
    if rank > 0:
        _without_snapshot(config, rank)
    try:
        ended = run_job(
            task_function=function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=HydraContext(config_loader=None, callbacks=Callbacks(config)),  # type: ignore[arg-type]
        )
    except (OSError, ValueError) as error:  # Hydra's own snapshot, the log file
        return failed(unwritable(error) or error)
    if ended.status == JobStatus.COMPLETED:
        return 0, {"value": ended.return_value}
    return failed(ended._return_value)


def failed(error: Any) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the error line of what a job raised; a bug is logged with its traceback."""
    if isinstance(error, RunError):
        return error.exit_code, {"error": str(error).splitlines()[0] if str(error) else type(error).__name__}
    logger.error("the job failed", exc_info=error)
    return BUG, {"error": f"{type(error).__name__}: {error}"}


def _without_snapshot(config: DictConfig, rank: int) -> None:
    """Ranks share the folder: only rank 0 writes `.hydra`, each has a log of its own."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job.name = f"{config.hydra.job.name}.rank{rank}"


def redirect_output(path: Path) -> None:
    """Append standard output and error to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


class SlurmTask:
    """A packed job, which submitit pickles at submission and calls in every process of the SLURM job."""

    def __init__(self, content: bytes, folder: str) -> None:
        self.content, self.folder = content, folder

    def __call__(self) -> None:
        """Run the job; leave the result in its folder, and with its exit code."""
        from submitit.slurm.slurm import SlurmJobEnvironment

        rank, folder = adopt().rank, Path(self.folder)
        redirect_output(output_of(folder, rank))
        if rank == 0:
            # A kill while submitit wrote its pickle leaves a file with which every later requeue would fail.
            submitted = SlurmJobEnvironment().paths.submitted_pickle
            submitted.with_suffix(submitted.suffix + ".save_tmp").unlink(missing_ok=True)
            if "SLURM_RESTART_COUNT" in os.environ:
                wait_until_free(folder, PATIENCE_SECONDS)
        if code := run(self.content, folder, rank):
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit puts back into the queue when the job is preempted or out of time: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


if __name__ == "__main__":
    follow_parent(signal.SIGTERM, int(sys.argv[3]))
    run_and_leave(Path(sys.argv[1]), int(sys.argv[2]))
