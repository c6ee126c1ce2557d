"""One process of a job: `python -m app.launch.worker FOLDER RANK PARENT`, or forked by app.launch.zygote.

Runs the task function with the config that the launcher composed and pickled, through Hydra's own `run_job`, so
logging, callbacks and the `.hydra` snapshot are those of any other Hydra job.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, open_dict, read_write

from app.errors import RunError
from app.files import write_json
from app.launch.job import PICKLE, RESULT
from app.process import follow_parent, leave

IMPORTS = ("hydra.core.utils", "hydra._internal.callbacks", "hydra._internal.logging_config")
"""What every job imports before its task function."""


def pack(config: DictConfig, task: Callable[..., Any]) -> bytes:
    """The config and the name of the task function, for another interpreter."""
    from hydra import version

    return pickle.dumps({"config": config, "task": name_of(task), "version_base": str(version.getbase())})


def name_of(task: Callable[..., Any]) -> str:
    """`module:function`; a function of `__main__` gets the name that its file has as a module."""
    module = task.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else Path(inspect.getfile(task)).stem
    return f"{module}:{task.__qualname__}"


def find(task: str) -> Callable[..., Any]:
    """The undecorated function that `name_of` named."""
    module, _, name = task.partition(":")
    found: Callable[..., Any] = inspect.unwrap(getattr(importlib.import_module(module), name))
    return found


def run_and_leave(folder: Path, rank: int) -> NoReturn:
    """Runs the job and ends this process with its exit code, at once: until then its slot is not free."""
    code: int | str | None = 1
    try:
        code = run(folder, rank)
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    leave(code)


def run(folder: Path, rank: int) -> int:
    """Runs the job pickled in `folder`; returns the exit code. Rank 0 leaves `.result.json`."""
    content = pickle.loads((folder / PICKLE).read_bytes())
    code, result = run_task(content["config"], content["task"], content["version_base"], rank)
    if rank == 0:
        write_json(folder / RESULT, result)
    return code


def run_task(config: DictConfig, task: str, version_base: str, rank: int) -> tuple[int, dict[str, Any]]:
    """Runs the task; returns the exit code and {value} or {error}. The task itself says what a RunError says."""
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobStatus, run_job, setup_globals
    from hydra.types import HydraContext

    version.setbase(version_base)
    setup_globals()
    function = find(task)
    if rank > 0:
        _without_snapshot(config, rank)
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
    ended = run_job(
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    if ended.status == JobStatus.COMPLETED:
        return 0, {"value": ended.return_value}
    error = ended._return_value
    if isinstance(error, RunError):
        return error.exit_code, {"error": str(error).splitlines()[0] if str(error) else type(error).__name__}
    logging.getLogger(__name__).error("the job failed", exc_info=error)
    return 1, {"error": f"{type(error).__name__}: {error}"}


def _without_snapshot(config: DictConfig, rank: int) -> None:
    """Ranks share the folder: only rank 0 writes `.hydra`, each has a log of its own."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job.name = f"{config.hydra.job.name}.rank{rank}"


if __name__ == "__main__":
    follow_parent(signal.SIGTERM, int(sys.argv[3]))
    run_and_leave(Path(sys.argv[1]), int(sys.argv[2]))
