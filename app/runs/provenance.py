"""Where a run came from: command line, code, packages, machine. Written into its folder at every launch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import pwd
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from app.files import write_json, write_text
from app.process import PATH
from app.runs.folder import ENVIRONMENT, RUN_NAME
from app.runs.start import job_id

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "torchmetrics", "hydra-core", "omegaconf", "numpy", "submitit", "wandb", "timm")
TRAINING_ONLY = ("optim", "schedule", "train", "mode", "load_from", "resume", "check")
"""Sections and keys that a test does not look at, or has of its own; with all others it measures the same."""
SECRET = re.compile(r"((?:key|token|secret|password|passwd)[\w.-]*=)\S+", re.IGNORECASE)


def output_dir() -> str:
    """Return the run folder that Hydra made for this job."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.output_dir)


def write(folder: Path, device: torch.device) -> None:
    """Write `environment.json`, and uncommitted changes as `code.diff` beside this launch's configuration snapshot."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    snapshot = folder / config.output_subdir if config.output_subdir else folder
    commit, diff = git_state()
    if diff:
        write_text(snapshot / "code.diff", diff)
    write_json(
        folder / ENVIRONMENT,
        ({} if (job := job_id()) is None else {"job": job})
        | {
            "command": SECRET.sub(r"\1***", " ".join(sys.argv)),
            "overrides": overrides(),
            "launched": datetime.now().isoformat(timespec="seconds"),
            "directory": str(Path.cwd()),
            "git_commit": commit,
            "git_dirty": bool(diff),
            "versions": versions(),
            "machine": machine(device),
        },
    )


def git_state() -> tuple[str | None, str]:
    """Return the commit of the code and the uncommitted changes of tracked files; None without git."""
    here = Path(__file__).resolve().parent
    # Variables (GIT_*, PATH, HOME) may come from a configuration file, and could make git run any program; so could the
    # repository's own settings for a diff. The user's real home is kept: it says which repositories are trusted.
    environment = {"PATH": PATH, "LC_ALL": "C"}
    with suppress(KeyError):  # in a container, a user may have no entry
        environment["HOME"] = pwd.getpwuid(os.getuid()).pw_dir

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), "-c", "core.fsmonitor=false", *words]
        ended = subprocess.run(command, env=environment, capture_output=True, timeout=10, check=True)
        return ended.stdout.decode(errors="replace")

    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "--no-ext-diff", "--no-textconv", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None, ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Describe host, processor and device."""
    import torch

    described: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def overrides() -> list[str]:
    """The overrides of this launch as they were typed, without `resume`: what they take from the environment may be
    secret."""
    from hydra.core.hydra_config import HydraConfig

    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(typed, list)
    return [str(word) for word in typed if not str(word).startswith("resume=")]


def resume_command(folder: Path) -> str:
    """The command line that continues the run in `folder`."""
    # The newest run of its experiment is found by itself; a folder of the user's own, or a sweep's, must be named.
    place = [] if RUN_NAME.match(folder.name) else [f"hydra.run.dir={folder}"]
    return shlex.join([*_program(), *overrides(), *place, "resume=true"])


def test_command(checkpoint: str) -> str:
    """The command line that measures `checkpoint` as this launch measured: all its overrides but those of training."""

    def needed(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~")
        return key == "train.amp" or key.partition(".")[0] not in TRAINING_ONLY

    words = [word for word in overrides() if needed(word)]
    return shlex.join([*_program(), *words, "mode=test", f"load_from={checkpoint}"])


def _program() -> list[str]:
    """`python -m app` with the configuration file and folder of this launch, where they are not the usual ones."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    name = config.job.config_name
    folders = [source.path for source in config.runtime.config_sources if source.provider == "command-line"]
    words = ["python", "-m", "app", *(f"--config-dir={folder}" for folder in folders)]
    return words if name in (None, "config") else [*words, f"--config-name={name}"]
