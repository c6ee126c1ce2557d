"""Starts of runs and sweeps: which came last, whatever clocks say, and which are restarts of one job.

Each start takes a number under a lock of its experiment. Names hold a date, so they go wrong with the time zone, summer
time or a clock set back; they only place those whose number cannot be read (all of version 0.1).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from app.files import locked, read_json, write_json

START = "start.json"
PATIENCE_SECONDS = 30.0


def restarted() -> bool:
    """Whether SLURM or torchrun started this job again."""
    return any(int(os.environ.get(f"{name}_RESTART_COUNT", "0")) > 0 for name in ("SLURM", "TORCHELASTIC"))


def job_id() -> str | None:
    """Identify a launch and its restarts by SLURM or torchrun, and no other; None outside of both."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None and "TORCHELASTIC_RUN_ID" in os.environ:
        job = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"  # the name alone is often `none`
    elif job is not None:
        job += f" {os.environ.get('SLURM_PROCID')}"  # with env.dist.launcher=none each task is a run of its own
    return None if job is None else hashlib.sha256("\0".join([job, *sys.argv[1:]]).encode()).hexdigest()[:16]


def record(folder: Path, trained: bool = False) -> None:
    """Note in `folder` (of a run or a sweep) that it is the last one started of those beside it.

    `trained`: at least one step of a run was completed.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # no locks on this file system: two equal numbers are better than no run
            stack.enter_context(locked(folder.parent, PATIENCE_SECONDS))
        last = max((number(path.parent) or 0 for path in folder.parent.glob(f"*/{START}")), default=0)
        write_json(folder / START, {"number": last + 1, "trained": trained, "job": job_id()})


def number(folder: Path) -> int | None:
    """Read the number of the last start in `folder`; None when it has none."""
    found = (read_json(folder / START) or {}).get("number")
    return found if isinstance(found, int) else None


def trained(folder: Path) -> bool:
    """Whether the run in `folder` has completed a step."""
    return bool((read_json(folder / START) or {}).get("trained"))


def in_order(folders: Iterable[Path]) -> list[Path]:
    """Sort runs, or sweeps, of one experiment by their starts, the last one last."""
    keys: dict[Path, tuple[int, bool, str]] = {}
    last = 0
    for folder in sorted(folders):
        own = number(folder)
        last = max(last, own or 0)
        keys[folder] = (own or last, own is None, folder.name)  # without a number: behind those with lesser names
    return sorted(keys, key=keys.__getitem__)
