"""`hydra/launcher=slurm`. Hydra imports this module at every start, so it stays light: the work is in app.launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """One SLURM job per point of a sweep; its keys: app/schema/launcher.py."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from app.launch.compose import place
        from app.launch.slurm import at_work, require_slurm

        require_slurm()
        self.context, self.task, self.config = hydra_context, task_function, config
        place(hydra_context, config, at_work)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from app.launch.slurm import launch

        return launch(self.options, self.context, self.task, self.config, job_overrides, initial_job_idx)
