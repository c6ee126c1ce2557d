"""When to save, what counts as best, and what happens when a save fails."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from app.checkpoint.background import BackgroundWriter
from app.checkpoint.contents import FULL, WEIGHTS, collect, config_sha256, nonfinite
from app.checkpoint.directory import CheckpointDir
from app.checkpoint.manifest import Manifest
from app.checkpoint.space import SaveError
from app.config.schema.hooks import CheckpointConf
from app.core.clock import due
from app.core.hook import Hook, call
from app.core.state import Run
from app.errors import DATA, IO, DataError
from app.metrics.names import resolve, resolve_rule

MAX_FAILURES = 2
"""In a row; then the run ends."""

logger = logging.getLogger(__name__)


class Checkpoint(CheckpointConf, Hook):
    """Save at the commit of an iteration: periodically, the best by a metric, and the last state. Rank 0 writes.

    `out_dir` takes effect through `run.checkpoint_folder`.
    """

    in_test = in_check = False

    def __post_init__(self) -> None:
        self.rules: dict[str, str] = {}
        """`greater` or `less` by metric, in the order of save_best."""
        self.best: dict[str, dict[str, float]] = {}
        self._beaten: dict[str, dict[str, float] | None] = {}
        """Metrics that the last evaluation was the best by, and what was best before."""
        self._metrics: dict[str, float] = {}
        self._saved = (0, -1)
        self._saved_at = time.monotonic()
        self._in_flight: dict[str, dict[str, float] | None] = {}
        """The same as `_beaten`, of the save that is being written."""
        self._writer = BackgroundWriter(in_background=self.async_save)
        self._directory: CheckpointDir | None = None
        self._source: CheckpointDir | None = None
        """Another run's folder, which the best checkpoints are brought from once this run has one of its own to go on
        from: until then a restarted job begins at that run's newest, not at its best."""
        self._failures = self._stop_code = 0
        self._problem = ""

    def attach(self, run: Run) -> None:
        self.by_epoch = run.by_epoch if self.by_epoch is None else self.by_epoch
        given = self.listed_rules()
        for name, rule in zip(self.listed_best(), given, strict=True):
            metric = resolve(name, run.monitored, "hooks.checkpoint.save_best")
            self.rules[metric] = resolve_rule(metric, run.monitored, rule, "hooks.checkpoint.rule")
        if self.interval < 0:
            logger.info("hooks.checkpoint.interval=-1: no checkpoint will be written")
            return
        if not self.save_optimizer:
            logger.warning("hooks.checkpoint.save_optimizer=false: the checkpoints cannot be resumed from")
        if run.world.is_main:
            folder = run.checkpoint_folder or run.folder / "checkpoints"
            self._directory = CheckpointDir(folder, list(self.rules), self.max_keep_ckpts)
            self._directory.open()

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        self._metrics = dict(metrics)
        candidates = {name: metrics[name] for name in self.rules if name in metrics}
        improved = [name for name, value in candidates.items() if self._is_better(name, value)]
        self._beaten = {name: self.best.get(name) for name in run.world.broadcast(improved)}
        for name in self._beaten:
            self.best[name] = {"value": candidates[name], "step": run.state.progress.step}

    def commit(self, run: Run) -> None:
        if self.interval < 0:
            return
        if self._writer.busy:
            self._note(self._writer.poll)
            if run.world.size == 1:
                self._agree_to_stop(run)
        progress = run.state.progress
        periodic = self._is_due(run) or (self.save_last and (run.save_requested or _is_over(run)))
        run.save_requested = False
        if (periodic or self._beaten) and (progress.step, progress.evaluated) != self._saved:
            self._save(run, periodic)

    def finish(self, run: Run, error: BaseException | None) -> None:
        if self.interval >= 0:
            try:
                if error is None:
                    self._save_last(run)
                else:
                    self.drain()
            finally:
                self._writer.close()

    @contextmanager
    def rolling_back(self, run: Run) -> Iterator[None]:
        self.drain()  # the newest checkpoint may still be on its way to the disk
        yield

    def newest_checkpoint(self) -> Path | None:
        newest = [] if self._directory is None else self._directory.manifests()
        return self._directory.folder / newest[-1].name if self._directory is not None and newest else None

    def best_checkpoint(self, metric: str, step: int | None = None) -> Path | None:
        if self._directory is None or metric not in self.best or step not in (None, self.best[metric]["step"]):
            return None
        return self._directory.best_path(metric)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "saved": list(self._saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = {name: dict(value) for name, value in state["best"].items()}
        self._saved = (int(state["saved"][0]), int(state["saved"][1]))
        self._beaten = {}

    def restored(self, run: Run, source: Path) -> None:
        home = source.resolve().parent
        if self._directory is None or home == self._directory.folder.resolve():
            return
        self._source = CheckpointDir(home)
        for name, best in list(self.best.items()):
            if name in self.rules and self._source.find_best(name, int(best["step"])) is None:
                logger.warning(
                    "the best checkpoint by %s, of step %d, is no longer in %s: the best from here on is kept",
                    name, best["step"], home,
                )  # fmt: skip
                del self.best[name]

    def _is_better(self, name: str, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if name not in self.best:
            return True
        best = self.best[name]["value"]
        return value > best if self.rules[name] == "greater" else value < best

    def _is_due(self, run: Run) -> bool:
        progress = run.state.progress
        if self.by_epoch:
            is_due = progress.batch == 0 and due(progress.epoch, self.interval, self.save_begin)
        else:
            is_due = due(progress.step, self.interval, self.save_begin)
        if self.every_minutes is not None:
            elapsed = time.monotonic() - self._saved_at >= 60 * self.every_minutes
            is_due |= bool(run.world.agree(int(elapsed)))
        return is_due

    def _stem(self, run: Run) -> str:
        """The file's name: by epoch only where the epoch is over and nothing of it is left to do."""
        progress = run.state.progress
        pattern = self.pattern()
        if not self.by_epoch:
            return pattern.format(progress.step)
        pending = run.stop_reason is not None and progress.evaluated < progress.step
        return f"iter_{progress.step}" if progress.batch or pending else pattern.format(progress.epoch)

    def _save(self, run: Run, periodic: bool) -> None:
        """Every rank takes part; the loop waits for the snapshot, and for the save before where that still runs."""
        call("before_save", [(name, hook.before_save) for name, hook in run.hooks.items()], run)
        if run.rollback_reason is not None:
            return
        self.drain()
        self._agree_to_stop(run)
        progress = run.state.progress
        self._saved, self._saved_at = (progress.step, progress.evaluated), time.monotonic()
        self._in_flight, self._beaten = self._beaten, {}
        state = collect(run, with_optimizer=self.save_optimizer)
        if self._directory is None:
            return
        entry = Manifest(
            name=f"{self._stem(run)}.pth",
            step=progress.step,
            epoch=progress.epoch,
            evaluated=progress.evaluated,
            kind=FULL if self.save_optimizer else WEIGHTS,
            periodic=periodic,
            metrics=dict(self._metrics),
            config_sha256=config_sha256(run),
        )
        run.visualizer.flush()
        best = list(self._in_flight)
        parameters = frozenset(name for name, _ in run.state.model.named_parameters())
        steps = {name: int(best["step"]) for name, best in self.best.items() if name in self.rules}

        def write(state: Mapping[str, Any], directory: CheckpointDir, source: CheckpointDir | None) -> str:
            if (name := nonfinite(state["model"], parameters)) is not None:
                raise DataError(f"{name} is not finite at step {entry.step}: not saved")
            run.visualizer.sync()  # a curve reaches as far as the checkpoint, even after a power cut
            name = directory.save(state, entry, best)
            if source is not None:
                directory.adopt_best(source, steps)
            return name

        self._writer.submit(state, partial(write, directory=self._directory, source=self._source))

    def _save_last(self, run: Run) -> None:
        """What is still to be saved at the end; a failure is tried once more, now that nothing else is going on."""
        progress = run.state.progress
        if self.save_last and _is_over(run) and (progress.step, progress.evaluated) != self._saved:
            self._save(run, periodic=True)
        self.drain()
        if run.world.agree(int(0 < self._failures < MAX_FAILURES and not self._stop_code)):
            self._save(run, periodic=True)
            self.drain()
        self._agree_to_stop(run)

    def drain(self) -> None:
        """Wait until the save in flight is on disk, or has failed: then it is said, and counted."""
        self._note(self._writer.drain)

    def _note(self, ending: Callable[[], str | None]) -> None:
        try:
            name = ending()
        except (SaveError, DataError) as error:
            self._take_back(error)
            return
        if name is not None:
            self._failures, self._source = 0, None
            logger.info("saved %s", name)

    def _take_back(self, error: SaveError | DataError) -> None:
        """A save that failed: what it would have been the best of is not."""
        for name, before in self._in_flight.items():
            if self.best[name]["step"] != self._saved[0]:
                continue
            if before is None:
                del self.best[name]
            else:
                self.best[name] = before
        self._failures += 1
        self._stop_code = DATA if isinstance(error, DataError) else IO if self._failures >= MAX_FAILURES else 0
        newest = self.newest_checkpoint()
        kept = f"the last good checkpoint is {newest.name}" if newest else "there is no checkpoint yet"
        self._problem = f"{error}; {kept}"
        logger.warning("%s%s", self._problem, "" if self._stop_code else "; training goes on")

    def _agree_to_stop(self, run: Run) -> None:
        """Every rank leaves when rank 0 cannot save; nothing else the run ended by matters as much."""
        code = run.world.agree(self._stop_code)
        if code and run.exit_code != code:
            run.stop_reason, run.exit_code = self._problem or "rank 0 cannot save", code


def _is_over(run: Run) -> bool:
    """The run ends here, and not because its numbers are no longer finite."""
    return run.finished or (run.stop_reason is not None and run.exit_code != DATA)
