"""Run folders: make, find, hold, remove one. Imports no torch.

outputs/<name>/<date_time>/   checkpoints/  vis_data/  app.log  .hydra/<stamp>/  and the records below
outputs/<name>/latest         link to the run that was started last and has completed a step
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from app.errors import CANNOT_WRITE, TEMPORARY, RunError
from app.files import locked, read_json, remove_leftovers, replace_link
from app.runs import start

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
DONE = "DONE.json"
"""The run is complete: its steps, its best."""
ENVIRONMENT = "environment.json"
"""Where it came from: see provenance."""
SEED = "seed.json"
LOCK = ".lock"
RUN_NAME = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}(\.\d+)?$")


def wants_resume(resume: bool | str) -> bool:
    """Whether to look for a checkpoint: `true`, `auto`, a path, or a job that SLURM or torchrun started again."""
    return resume not in (False, "false") or start.restarted()


def resume_path(resume: bool | str, load_from: str | None) -> str | None:
    """Return the checkpoint that `resume` (with `load_from`) names; None: the newest of the run folder."""
    if isinstance(resume, str) and resume not in ("auto", "true", "false"):
        return resume
    return load_from if resume in (True, "true") else None


def choose(
    output_root: str,
    name: str,
    mode: str,
    check: bool,
    resume: bool | str,
    load_from: str | None,
    made: list[Path] | None = None,
) -> Path:
    """Return the folder of a single run: this experiment's newest with `resume`, else a new one, which is made.

    A named checkpoint is continued in its own run's folder when it is the newest one there, else in a new folder. A job
    that was started again goes on in the folder of its first start. Folders that had to be made are added to `made`.
    """
    root = Path(output_root, name)
    if mode == "train" and not check:
        named = resume_path(resume, load_from)
        if start.restarted() and (own := _of_job(root)) is not None:
            return own
        if named is not None:
            home = Path(named).absolute().parent.parent
            if is_run(home) and _is_newest(Path(named)):
                return home
        elif resume not in (False, "false") and (newest := newest_run(root)) is not None:
            return newest
    return _claim(root, "check" if check else mode, [] if made is None else made)


def is_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return (folder / ".hydra").is_dir()


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in `folder` has a manifest, intact or not."""
    return holds_checkpoint(folder / CHECKPOINTS)


def holds_checkpoint(checkpoints: Path) -> bool:
    """Whether a checkpoint folder has a manifest, intact or not."""
    return any(checkpoints.glob("*.json")) or any(checkpoints.glob("*.damaged"))


def newest_run(root: Path) -> Path | None:
    """Return the last started training run below `root` that has a checkpoint; if none has, the last started."""
    runs = runs_of(root)
    return next((run for run in reversed(runs) if has_checkpoint(run)), runs[-1] if runs else None)


def runs_of(root: Path) -> list[Path]:
    """List the training runs of an experiment, the last started last."""
    return start.in_order(folder for folder in root.glob("*") if RUN_NAME.match(folder.name) and is_run(folder))


def passed_over(run: Path) -> Path | None:
    """Return the run that was started last, where that is not `run` because it has no checkpoint."""
    runs = runs_of(run.parent)
    return runs[-1] if runs and run in runs[:-1] and not has_checkpoint(runs[-1]) else None


def _of_job(root: Path) -> Path | None:
    """Find the newest run below `root` that this job was launched into."""
    job = start.job_id()
    if job is None:
        return None

    def is_own(run: Path) -> bool:
        return job in [(read_json(run / name) or {}).get("job") for name in (start.START, ENVIRONMENT)]

    return next(filter(is_own, reversed(runs_of(root))), None)


def _is_newest(checkpoint: Path) -> bool:
    def step(manifest: Path) -> int:
        with suppress(OSError, ValueError):
            return int(json.loads(manifest.read_text())["step"])
        return -1

    mine = step(checkpoint.with_suffix(".json"))
    return all(step(other) <= mine for other in checkpoint.parent.glob("*.json"))


def _claim(root: Path, mode: str, made: list[Path]) -> Path:
    """Make a new folder, named by the time; two launches in one second get two."""
    parents = _missing(root)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + ("" if mode == "train" else f"_{mode}")
    for attempt in range(1000):
        folder = root / (stamp if attempt == 0 else f"{stamp}.{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not root.is_dir():
                raise RunError(f"{root} is a file; choose another output_root or name", 73) from error
            continue
        except OSError as error:
            raise RunError(
                f"cannot make the run folder {folder.absolute()}: {error.strerror}; "
                "choose a writable output_root=… or hydra.run.dir=…",
                73,
            ) from error
        made += [folder.absolute(), *parents]
        if mode == "train":
            with suppress(OSError):  # said, with what to do, when the folder is held
                start.record(folder)
        return folder
    raise AssertionError("a thousand runs in one second")


def count_start(folder: Path) -> None:
    """Make the run the newest one, `latest`, and not complete: the first step of this start is done."""
    try:
        (folder / DONE).unlink(missing_ok=True)
        start.record(folder, trained=True)
    except OSError as error:
        logger.warning("cannot note in %s that its run was started: %s", folder, error.strerror)
    if RUN_NAME.match(folder.name):  # not a point of a sweep, nor a folder of one's own
        with suppress(OSError):  # a file system without links
            replace_link(folder.parent / "latest", folder.name)


@contextmanager
def removed_if_unused() -> Iterator[None]:
    """Remove the run folder that Hydra makes within, and what had to be made above it, if no step is completed.

    What a start does not write by itself is never deleted; nor is a folder that the user named by hydra.run.dir.
    """
    made: list[Path] = []
    register_resolver(made)
    try:
        yield
        unused = bool(made) and start.number(made[0]) is not None  # a training run; a test is never `trained`
    except BaseException:
        unused = bool(made)
        raise
    finally:
        if unused:
            _discard(made[0])
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def _missing(folder: Path) -> list[Path]:
    return [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]


def _discard(folder: Path) -> None:
    """Remove what a start writes before its first step."""
    if start.trained(folder) or has_checkpoint(folder) or any(folder.glob("vis_data/*.jsonl")):
        return
    checkpoints = folder / CHECKPOINTS
    with suppress(OSError):
        checkpoints.resolve().rmdir()  # with hooks.checkpoint.out_dir it is a link
        if checkpoints.is_symlink():
            checkpoints.unlink()
    for name in (start.START, SEED, ENVIRONMENT, LOCK, "app.log"):
        (folder / name).unlink(missing_ok=True)
    for name in (".hydra", "vis_data"):
        shutil.rmtree(folder / name, ignore_errors=True)


def link_checkpoints(folder: Path, checkpoints: Path) -> None:
    """Link `checkpoints` in the run folder to where they are kept, so that the run is found without that setting."""
    link = folder / CHECKPOINTS
    if checkpoints != link and not has_checkpoint(folder) and (link.is_symlink() or not link.exists()):
        with suppress(OSError):
            replace_link(link, os.path.relpath(checkpoints, folder))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the run folder against a second process.

    Raises:
        RunError: another process holds it (code 75), or it cannot be written (code 73).
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK))
            for part in (folder, *folder.glob("vis_data/**/")):
                remove_leftovers(part)
        except BlockingIOError as error:
            raise RunError(
                f"{folder} is in use by {error.strerror}; wait for it, stop it, or start a run in another folder",
                TEMPORARY,
            ) from error
        except OSError as error:
            raise RunError(
                f"cannot write to the run folder {folder.absolute()}: {error.strerror} (as uid {os.getuid()}, "
                f"mode {folder.stat().st_mode & 0o777:o}); choose another hydra.run.dir or output_root",
                CANNOT_WRITE,
            ) from error
        yield


def wait_until_free(folder: Path, patience_seconds: float) -> None:
    """Wait until nobody holds `folder`, at most so long.

    The loader workers of a process that was killed share its lock, and live for some seconds more.
    """
    with suppress(BlockingIOError), locked(folder / LOCK, patience_seconds):
        pass


def register_resolver(made: list[Path] | None = None) -> None:
    """Make `${run_folder:…}` known to OmegaConf; evaluated once, by Hydra, when it makes the folder of a run."""
    from omegaconf import OmegaConf

    def run_folder(output_root: str, name: str, mode: str, check: bool, resume: Any, load_from: str | None) -> str:
        return str(choose(output_root, name, mode, check, resume, load_from, made))

    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True, use_cache=True)
