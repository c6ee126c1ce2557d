"""Run folders: which one a launch uses, who holds it, whether its run is finished. Imports no torch.

outputs/<name>/<date_time>/   checkpoints/  vis_data/  app.log  environment.json  .hydra/<stamp>/
outputs/<name>/latest         link to the newest run
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from app.errors import CANNOT_WRITE, TEMPORARY, RunError
from app.files import locked, read_json, remove_leftovers, replace_link

CHECKPOINTS = "checkpoints"
DONE = "DONE.json"
ENVIRONMENT = "environment.json"
SEED = "seed.json"
LOCK = ".lock"
RUN_NAME = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}(\.\d+)?$")


def wants_resume(resume: bool | str) -> bool:
    """True for `true`, `auto` and a path, and for a job that its cluster, or torchrun, started again."""
    return resume not in (False, "false") or restarted()


def restarted() -> bool:
    """True when SLURM or torchrun started this job again."""
    return any(int(os.environ.get(f"{name}_RESTART_COUNT", "0")) > 0 for name in ("SLURM", "TORCHELASTIC"))


def job_id() -> str | None:
    """What a launch has in common with its restarts by SLURM or torchrun, and with no other; None outside of both."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None and "TORCHELASTIC_RUN_ID" in os.environ:
        job = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"  # the name alone is often `none`
    return None if job is None else hashlib.sha256("\0".join([job, *sys.argv[1:]]).encode()).hexdigest()[:16]


def resume_path(resume: bool | str, load_from: str | None) -> str | None:
    """The checkpoint that `resume` (with `load_from`) names, or None when the newest of the run folder is meant."""
    if isinstance(resume, str) and resume not in ("auto", "true", "false"):
        return resume
    return load_from if resume in (True, "true") else None


def choose(output_root: str, name: str, mode: str, check: bool, resume: bool | str, load_from: str | None) -> Path:
    """The folder of a single run: this experiment's newest with `resume`, else a new one, which is made.

    A named checkpoint is continued in its own run's folder when it is the newest one there, else in a new folder. A job
    that was started again goes on in the folder of its first start.
    """
    root = Path(output_root, name)
    if mode == "train" and not check:
        named = resume_path(resume, load_from)
        if restarted() and (own := _of_job(root, job_id())) is not None:
            return own
        if named is not None:
            home = Path(named).absolute().parent.parent
            if is_run(home) and _is_newest(Path(named)):
                return home
        elif resume not in (False, "false") and (newest := newest_run(root)) is not None:
            return newest
    return _claim(root, "check" if check else mode)


def is_run(folder: Path) -> bool:
    """True when a run was started in `folder`."""
    return (folder / ".hydra").is_dir()


def has_checkpoint(folder: Path) -> bool:
    """True when there is a manifest, intact or not, of a training run."""
    return holds_checkpoint(folder / CHECKPOINTS)


def holds_checkpoint(checkpoints: Path) -> bool:
    """The same of the folder of the checkpoints."""
    return any(checkpoints.glob("*.json")) or any(checkpoints.glob("*.damaged"))


def newest_run(root: Path) -> Path | None:
    """The newest training run below `root` that has a checkpoint; if none has, the newest run; by name, not by time."""
    runs = _runs(root)
    return next((run for run in reversed(runs) if has_checkpoint(run)), runs[-1] if runs else None)


def _runs(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob("*") if RUN_NAME.match(folder.name) and is_run(folder))


def _of_job(root: Path, job: str | None) -> Path | None:
    """The newest run below `root` that this job was launched into last."""
    own = (run for run in reversed(_runs(root)) if (read_json(run / ENVIRONMENT) or {}).get("job") == job)
    return None if job is None else next(own, None)


def _is_newest(checkpoint: Path) -> bool:
    def step(manifest: Path) -> int:
        with suppress(OSError, ValueError):
            return int(json.loads(manifest.read_text())["step"])
        return -1

    mine = step(checkpoint.with_suffix(".json"))
    return all(step(other) <= mine for other in checkpoint.parent.glob("*.json"))


def _claim(root: Path, mode: str) -> Path:
    """A new folder of this second; two launches at once get two."""
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
        return folder
    raise AssertionError("a thousand runs in one second")


def link_latest(folder: Path) -> None:
    """Points `latest` beside `folder` to it; a file system without links is left alone."""
    with suppress(OSError):
        replace_link(folder.parent / "latest", folder.name)


def link_checkpoints(folder: Path, checkpoints: Path) -> None:
    """Lets `checkpoints` in the run folder name where they are kept, so that the run is found without that setting."""
    link = folder / CHECKPOINTS
    if checkpoints != link and not has_checkpoint(folder) and (link.is_symlink() or not link.exists()):
        with suppress(OSError):
            replace_link(link, os.path.relpath(checkpoints, folder))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the run folder against a second process.

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
    """Waits for whoever holds `folder` to leave, at most so long.

    The loader workers of a process that was killed share its lock, and live for some seconds more.
    """
    with suppress(BlockingIOError), locked(folder / LOCK, patience_seconds):
        pass


def register_resolver() -> None:
    """Makes `${run_folder:…}` known to OmegaConf; evaluated once, by Hydra, when it makes the folder of a run."""
    from omegaconf import OmegaConf

    def run_folder(output_root: str, name: str, mode: str, check: bool, resume: Any, load_from: str | None) -> str:
        return str(choose(output_root, name, mode, check, resume, load_from))

    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True, use_cache=True)
