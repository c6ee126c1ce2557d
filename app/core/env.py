"""The process's environment: set before it is too late, put back after the job."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from app.errors import ConfigError

logger = logging.getLogger(__name__)


def choose_device(device: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of `env.device`.

    Raises:
        ConfigError: there is no such device, or fewer GPUs than ranks on this machine.
    """
    count = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    if device == "auto":
        if count:
            device = "cuda"
        else:
            return torch.device("mps" if local_size == 1 and torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"env.device={device} is no device; use auto, cpu, cuda, cuda:N or mps") from error
    if chosen.type == "cuda":
        if count == 0:
            raise ConfigError(
                f"env.device={device}: this machine has no usable CUDA device; use env.device=cpu or auto"
            )
        # A launcher may show each of its tasks only that task's own GPU.
        index = local_rank % count if device == "cuda" and count == 1 else local_rank
        if ":" in device:
            index = chosen.index
        if index >= count:
            raise ConfigError(
                f"env.device={device}: rank {local_rank} of this machine wants cuda:{index}, found {count} CUDA "
                f"device(s); start at most {count} process(es) here, or use env.device=cpu"
            )
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("env.device=mps: this machine has no usable MPS device; use env.device=cpu or auto")
    elif chosen.type not in ("cpu", "mps"):
        raise ConfigError(f"env.device={device} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return chosen


@contextmanager
def applied(env: Mapping[str, Any], *, deterministic: bool, local_size: int = 1) -> Iterator[list[str]]:
    """Applies `env` and `randomness.deterministic` to this process for one job; yields lines for the log.

    Everything global is put back on exit, so that the jobs of a sweep in one process do not leak into each other.
    """
    notes = []
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    opencv = os.environ.get("OPENCV_FOR_THREADS_NUM")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = env["mp"]["num_threads"]
        if wanted is None and local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
            wanted = max(1, threads // local_size)
        if wanted is not None and wanted != threads:
            torch.set_num_threads(wanted)
        os.environ["OPENCV_FOR_THREADS_NUM"] = str(env["mp"]["opencv_num_threads"])
        cudnn.benchmark = env["cudnn_benchmark"] and not deterministic
        if deterministic:
            if env["cudnn_benchmark"]:
                notes.append("randomness.deterministic=true beats env.cudnn_benchmark=true: cuDNN benchmarking is off")
            cudnn.deterministic = True
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        _raise_open_files(env["resource_limit"], limits)
        yield notes
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = before[:2]
        if deterministic:  # this call imports torch's compiler, 4 s of CPU time
            torch.use_deterministic_algorithms(before[2], warn_only=warn_only)
        _restore("CUBLAS_WORKSPACE_CONFIG", workspace)
        _restore("OPENCV_FOR_THREADS_NUM", opencv)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _raise_open_files(wanted: int, limits: tuple[int, int]) -> None:
    soft, hard = limits
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        logger.warning("env.resource_limit=%d is above the hard limit %d; using %d", wanted, hard, hard)
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
