"""What every launcher does around its own way of running jobs: the sweep's folder, the jobs, the results.

Hydra's plugins are imported at every start of the command, so this imports little, and the rest when it is needed.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from app.config.wording import listed
from app.errors import ConfigError

if TYPE_CHECKING:
    from app.launch.job import Job
    from app.launch.watch import Lines

ORPHANS_SECONDS = 10.0
"""For the jobs of a killed launcher to be gone, on top of the time that they have to save."""


class Backend(Protocol):
    """A module that runs jobs: app.launch.queue or app.launch.slurm."""

    def require(self, options: dict[str, Any]) -> None:
        """Raise ConfigError where this machine, or these options, cannot do it."""
        ...

    def at_work(self, folder: Path) -> bool:
        """Return whether jobs of the sweep in `folder` are waiting or running without a launcher."""
        ...

    def run(self, options: dict[str, Any], jobs: Sequence[Job], watcher: Lines, stop: StopRequest, lock: int) -> None:
        """Run the jobs; `lock` is a file descriptor for their processes to inherit."""
        ...


class StopRequest:
    """Counts the requests to stop: Ctrl-C, SIGTERM, a closed terminal. srun sends pairs of signals."""

    def __init__(self) -> None:
        self.count = 0
        self.signum = 0
        self._last = -math.inf

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over SIGINT, SIGTERM and SIGHUP, and give them back."""
        before = {number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.count += now - self._last >= 1.0  # closer ones are the same request
        self.signum, self._last = signum, now


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
        """Find the sweep's folder. Raises ConfigError where no job could be run."""
        from app.config.check import launcher_problems
        from app.launch.compose import place

        if problems := list(launcher_problems(config)):
            raise ConfigError(listed(problems))
        self.context, self.task, self.master = hydra_context, task_function, config
        self.backend = cast(Backend, import_module(self.backend_name))
        self.backend.require(self.options)
        self.keys = place(hydra_context, config, self.backend.at_work)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all points.

        Raises:
            ConfigError: some point's config is wrong; then none was started.
            SystemExit: 128 + signal after a request to stop.
        """
        from app.launch import sweep
        from app.launch.compose import compose
        from app.launch.job import DONE_STATE, job_returns, name_of
        from app.launch.watch import make_watcher

        setup_globals()
        configure_log(self.master.hydra.hydra_logging, self.master.hydra.verbose)
        folder, options, stop = Path(self.master.hydra.sweep.dir), self.options, StopRequest()
        with sweep.held(folder, options.get("grace_seconds", 0.0) + ORPHANS_SECONDS) as lock:
            is_new = not (folder / sweep.SWEEP).exists()
            try:
                loader, task = self.context.config_loader, name_of(self.task)
                jobs = compose(loader, self.master, task, job_overrides, initial_job_idx)
                sweep.write_about(folder, self.keys)
                with make_watcher(jobs, folder) as watcher, stop.listening():
                    left = [job for job in jobs if job.state != DONE_STATE]
                    self.backend.run(options, left, watcher, stop, lock)
            finally:
                if is_new:
                    sweep.discard_unused(folder)
        if stop.count:
            raise SystemExit(128 + stop.signum)
        return job_returns(jobs)
