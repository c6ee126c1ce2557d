"""The folder of a sweep: which one a launch uses, who holds it, which folder each of its points has.

outputs/<name>/sweep_<date_time>/   sweep.json  results.csv  report.html  <point>/…
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from app.errors import TEMPORARY, CannotWrite, ConfigError, RunError
from app.files import locked, read_json, write_json
from app.launch.job import DONE_STATE, FAILED, INTERRUPTED, RECORD, read_records
from app.launch.point import hashed, slug
from app.runs import start

SWEEP = "sweep.json"
LAUNCHER_LOCK = ".launcher.lock"
JOBS_LOCK = ".jobs.lock"


def choose(root: Path, keys: Sequence[str], resume: bool) -> Path:
    """The sweep folder below `root` for a launch whose command line sets or sweeps over `keys`.

    With `resume`, the newest sweep with the same keys, else the newest that shares one of them, those of which no job
    got anywhere last; if there is none, and without `resume`, a new one.
    """
    if resume:
        known = {folder: known_keys(folder) for folder in reversed(start.in_order(root.glob("sweep_*")))}
        same = [folder for folder, its in known.items() if its == set(keys)]
        related = [folder for folder, its in known.items() if its & set(keys)]
        if found := same or related:
            chosen = next((folder for folder in found if has_progress(folder)), found[0])
            if chosen is not found[0]:
                print(f"{found[0]} was stopped before its first job had saved; going on with {chosen}", flush=True)
            return chosen
    stamp = f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    names = (stamp if attempt == 0 else f"{stamp}.{attempt}" for attempt in range(1000))
    return next(root / name for name in names if not (root / name).exists())


def known_keys(folder: Path) -> set[str]:
    """The keys that a sweep has set or swept over: as it noted, else as its jobs did."""
    noted = (read_json(folder / SWEEP) or {}).get("keys")
    if isinstance(noted, list):
        return set(map(str, noted))
    return {key for record in read_records(folder).values() for key in json.loads(record["identity"])}


def has_progress(folder: Path) -> bool:
    """Whether some job of the sweep in `folder` has saved, ended or been submitted."""
    marks = ("DONE.json", "checkpoints/*.json", "slurm.json")
    ended = (FAILED, INTERRUPTED, DONE_STATE)
    return any(any(folder.glob(f"*/{mark}")) for mark in marks) or any(
        record.get("state") in ended for record in read_records(folder).values()
    )


def make_folder(folder: Path, may_continue: bool) -> None:
    """Makes the sweep's folder.

    Raises:
        ConfigError: it holds points already and is not to be continued.
        CannotWrite: it cannot be made.
    """
    if not may_continue and any(folder.glob(f"*/{RECORD}")):
        raise ConfigError(
            f"hydra.sweep.dir={folder} already holds a sweep; add resume=true to continue it, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(
            f"cannot make the sweep folder {folder.absolute()}: {error.strerror}; choose another output_root"
        ) from error


def write_about(folder: Path, keys: Sequence[str]) -> None:
    """Notes the command line, and all keys that it and the earlier ones set or sweep over."""
    command = [*(["python", "-m", "app"] if sys.argv[0].endswith("__main__.py") else ["app"]), *sys.argv[1:]]
    write_json(folder / SWEEP, {"keys": sorted({*keys, *known_keys(folder)}), "command": command})
    start.record(folder)


def discard_unused(folder: Path) -> None:
    """Remove the folder of a sweep of which no job was started, unless somebody keeps something in it."""
    if not any(folder.glob(f"*/{RECORD}")):
        for name in ("multirun.yaml", SWEEP, start.START, "results.csv", "report.html", LAUNCHER_LOCK, JOBS_LOCK):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def assign_folders(sweep_folder: Path, points: Iterable[tuple[dict[str, Any], str]]) -> list[Path]:
    """The folder of each point (axes, identity): the one it had before, else a new name, unlike all others."""
    taken = {record["identity"]: name for name, record in read_records(sweep_folder).items()}
    names = set(taken.values())
    folders = []
    for axes, identity in points:
        if identity not in taken:
            name = slug(axes, identity)
            taken[identity] = hashed(name, identity) if name in names else name
            names.add(taken[identity])
        folders.append(sweep_folder / taken[identity])
    return folders


@contextmanager
def held(folder: Path, patience_seconds: float) -> Iterator[int]:
    """Holds a sweep folder against a second launcher; yields a file descriptor for the jobs to inherit.

    There are two locks: the launcher's own, and one that stays held until the last process that inherited it is gone.
    So the jobs of a killed launcher can save and leave; that is waited for.

    Raises:
        RunError: another launcher is at work there, or jobs of a dead one do not leave (code 75).
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LAUNCHER_LOCK))
        except BlockingIOError as error:
            raise RunError(
                f"{folder} is in use by launcher {error.strerror}; wait for it or stop it", TEMPORARY
            ) from error
        yield stack.enter_context(_jobs_lock(folder, patience_seconds))


@contextmanager
def _jobs_lock(folder: Path, patience_seconds: float) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(folder / JOBS_LOCK))
        except BlockingIOError:
            print(f"waiting for jobs of the previous launch in {folder} to save and leave", flush=True)
            try:
                lock = stack.enter_context(locked(folder / JOBS_LOCK, patience_seconds))
            except BlockingIOError as error:
                raise RunError(
                    f"jobs of a launcher that is gone still run in {folder}; stop them first", TEMPORARY
                ) from error
        yield lock
