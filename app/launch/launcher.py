"""What every launcher does around its own way of running jobs: the sweep's folder, the jobs, the results.

Hydra's plugins are imported at every start of the command, so this imports little, and the rest when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from app.config.wording import listed
from app.errors import ConfigError

if TYPE_CHECKING:
    from app.launch.job import Job
    from app.launch.queue import StopRequest

ORPHANS_SECONDS = 10.0
"""For the jobs of a killed launcher to be gone, on top of the time that they have to save."""


class Backend(Protocol):
    """A module that runs jobs: app.launch.local or app.launch.slurm."""

    def require(self, options: dict[str, Any]) -> None:
        """Raises ConfigError where this machine, or these options, cannot do it."""
        ...

    def at_work(self, folder: Path) -> bool:
        """Whether jobs of the sweep in `folder` are waiting or running without a launcher."""
        ...

    def run(
        self, options: dict[str, Any], task: TaskFunction, jobs: Sequence[Job], folder: Path, lock: int
    ) -> StopRequest:
        """Runs the jobs that are not done; `lock` is a file descriptor for their processes to inherit."""
        ...


class SweepLauncher(Launcher):
    """A launcher of Hydra's, on a backend."""

    backend_name: str

    def __init__(self, **options: Any) -> None:
        pass  # read from the configuration when they are used: some name the sweep's folder, which is chosen later

    @property
    def options(self) -> dict[str, Any]:
        """`hydra.launcher` as plain values."""
        options = OmegaConf.to_container(self.master.hydra.launcher, resolve=True)
        assert isinstance(options, dict)
        return options  # type: ignore[return-value]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Finds the sweep's folder. Raises ConfigError where no job could be run."""
        from app.config.check import launcher_problems
        from app.launch.compose import place

        if problems := list(launcher_problems(config)):
            raise ConfigError(listed(problems))
        self.context, self.task, self.master = hydra_context, task_function, config
        self.backend = cast(Backend, import_module(self.backend_name))
        self.backend.require(self.options)
        self.keys = place(hydra_context, config, self.backend.at_work)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all points.

        Raises:
            ConfigError: some point's config is wrong; then none was started.
            SystemExit: 128 + signal after a request to stop.
        """
        from app.launch import sweep
        from app.launch.compose import compose
        from app.launch.job import job_returns

        setup_globals()
        configure_log(self.master.hydra.hydra_logging, self.master.hydra.verbose)
        folder = Path(self.master.hydra.sweep.dir)
        with sweep.held(folder, self.options.get("grace_seconds", 0.0) + ORPHANS_SECONDS) as lock:
            try:
                jobs = compose(self.context.config_loader, self.master, job_overrides, initial_job_idx)
            except ConfigError:
                sweep.discard_unused(folder)
                raise
            sweep.write_about(folder, self.keys)
            stop = self.backend.run(self.options, self.task, jobs, folder, lock)
        if stop.count:
            raise SystemExit(128 + stop.signum)
        return job_returns(jobs)
