"""What SLURM knows of jobs, with or without its accounting database."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection
from functools import cache

from app.errors import TemporaryError

ACTIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "PREEMPTED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
}
"""States of a job that may still run; https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES."""


def is_active(state: str | None) -> bool:
    """Whether a job in this state is, or will be, at work; None: SLURM does not know it."""
    return state in ACTIVE


def states(wanted: Collection[str] = ()) -> dict[str, str]:
    """State by job id (`35_0` in an array) of this user's jobs.

    squeue knows those that are queued and, for some minutes, those that have ended; for the `wanted` ones that it has
    forgotten, the accounting is asked, where there is one.

    Raises:
        TemporaryError: SLURM does not answer.
    """
    answer = run("squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T")
    if answer is None:
        raise TemporaryError("SLURM does not answer squeue; try again later")
    found = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
    forgotten = sorted(set(wanted) - set(found))
    if forgotten and has_accounting():
        accounts = run("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(forgotten)) or ""
        for line in accounts.splitlines():
            job_id, _, state = line.partition("|")
            found.setdefault(job_id, state.split()[0] if state else "")
    return found


def reasons(job_ids: Collection[str]) -> str:
    """Why these jobs are pending, in SLURM's words, such as `Resources`; nothing where none is."""
    answer = run("squeue", "--noheader", "--states=pending", f"--jobs={','.join(sorted(job_ids))}", "--format=%r") or ""
    return ", ".join(sorted({line.strip() for line in answer.splitlines()} - {"", "None"}))


@cache
def has_accounting() -> bool:
    """Whether sacct works here."""
    return run("sacct", "-n", "-X", "-o", "JobID", "--starttime=now") is not None


@cache
def max_array_size() -> int:
    """The greatest number of jobs in an array."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config") or "")
    return int(match[1]) if match else 1000


def run(*command: str) -> str | None:
    """Output of a SLURM command; None when it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None
