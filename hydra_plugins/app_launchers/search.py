"""`hydra/sweeper=optuna`. Hydra imports this module at every start, so it stays light: the work is in app.launch."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Asks Optuna for points and tells it their results; its keys: app/config/schema/launcher.py."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from app.launch.search import require_optuna

        require_optuna()
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        from app.launch.search import search

        assert self.launcher is not None
        assert self.config is not None
        return search(self.options, self.launcher, self.config, arguments)
