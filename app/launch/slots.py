"""Where jobs run on this machine: GPUs found without importing torch, or cores."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one job at a time."""

    number: int
    gpus: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"GPU {'+'.join(self.gpus)}" if self.gpus else f"CPU slot {self.number}"


def visible_gpus() -> list[str]:
    """Ids of this machine's GPUs as CUDA_VISIBLE_DEVICES has them, else as nvidia-smi lists them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [word.strip() for word in visible.split(",") if word.strip()]
        return ids[: ids.index("-1")] if "-1" in ids else ids
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_slots(gpus: Any, gpus_per_job: int, jobs_per_gpu: int, cpu_slots: int | None) -> list[Slot]:
    """Cuts the GPUs into groups of `gpus_per_job`; without GPUs, as many CPU slots as asked for, or one per core.

    Raises:
        ConfigError: naming the key that cannot be met.
    """
    if gpus_per_job > 1 and jobs_per_gpu > 1:
        raise ConfigError(f"hydra.launcher.jobs_per_gpu={jobs_per_gpu} needs gpus_per_job=1, got {gpus_per_job}")
    ids = gpu_ids(gpus)
    if not ids:
        if gpus_per_job > 1:
            raise ConfigError(f"hydra.launcher.gpus_per_job={gpus_per_job}, but this machine shows no GPU")
        return [Slot(number) for number in range(cpu_slots or cores())]
    groups = [tuple(ids[start : start + gpus_per_job]) for start in range(0, len(ids), gpus_per_job)]
    whole = [group for group in groups if len(group) == gpus_per_job]
    if not whole:
        raise ConfigError(f"hydra.launcher.gpus_per_job={gpus_per_job}, but there are only {len(ids)} GPUs: {ids}")
    return [Slot(number, group) for number, group in enumerate(whole * jobs_per_gpu)]


def gpu_ids(gpus: Any) -> list[str]:
    """`hydra.launcher.gpus` as a list of ids."""
    if gpus == "auto":
        return visible_gpus()
    if isinstance(gpus, (str, int)) and not isinstance(gpus, bool):
        return [word.strip() for word in str(gpus).split(",")]
    if isinstance(gpus, Sequence) or gpus is None:
        return [str(gpu) for gpu in gpus or ()]
    raise ConfigError(f"hydra.launcher.gpus must be auto or a list of GPU ids such as [0,1], got {gpus!r}")


def threads_of(asked: int | None, processes: int) -> int:
    """Threads of each of so many processes: as asked, else OMP_NUM_THREADS, else their share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return asked or (int(given) if given.isdigit() else max(1, cores() // processes))


def environment(slot: Slot, threads: int) -> dict[str, str]:
    """What each process of a job in `slot` gets: its GPUs and nobody else's, and its threads."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus), "OMP_NUM_THREADS": str(threads)}
