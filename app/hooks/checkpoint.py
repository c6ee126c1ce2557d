"""When to save, what counts as best, and what happens when a save fails."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from app.checkpoint.contents import FULL, WEIGHTS, collect, config_sha256
from app.checkpoint.finite import write_finite
from app.checkpoint.saver import Saver
from app.checkpoint.store import Save, Store
from app.checkpoint.writer import SaveError
from app.core.clock import due
from app.core.hook import Hook, call
from app.core.state import Run
from app.errors import DATA, IO, ConfigError, DataError
from app.metrics.names import resolve, resolve_rule

MAX_FAILURES = 2
"""In a row; then the run ends."""

logger = logging.getLogger(__name__)


class Checkpoint(Hook):
    """Saves at the commit of an iteration: periodically, the best by a metric, and the last state. On rank 0."""

    in_test = in_check = False

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        every_minutes: float | None = None,
        out_dir: str | None = None,
        max_keep_ckpts: int = -1,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        save_last: bool = True,
        save_begin: int = 0,
        save_optimizer: bool = True,
        filename: str | None = None,
        async_save: bool = True,
    ) -> None:
        """Arguments as in CheckpointConf; `out_dir` takes effect through `run.checkpoint_folder`.

        Raises:
            ConfigError: an argument alone, or two together, make no sense.
        """
        if interval == 0:
            raise ConfigError("hooks.checkpoint.interval must be >= 1, or -1 for no checkpoints at all, got 0")
        self.interval, self.by_epoch, self.save_begin = interval, by_epoch, save_begin
        self.every_seconds = None if every_minutes is None else 60 * every_minutes
        self.save_best = [save_best] if isinstance(save_best, str) else list(save_best or [])
        self.rule = [rule] if isinstance(rule, str) else list(rule or [])
        self.max_keep_ckpts, self.save_last, self.save_optimizer = max_keep_ckpts, save_last, save_optimizer
        self.filename = _checked_filename(filename, by_epoch)
        self.out_dir = out_dir
        self.rules: dict[str, str] = {}
        self.best: dict[str, dict[str, float]] = {}
        self._beaten: dict[str, dict[str, float] | None] = {}
        """Metrics that the last evaluation was the best by, and what was best before."""
        self._metrics: dict[str, float] = {}
        self._saved = (0, -1)
        self._saved_at = time.monotonic()
        self._in_flight: dict[str, dict[str, float] | None] = {}
        """The same of the save that is being written."""
        self._saver = Saver(in_background=async_save)
        self._store: Store | None = None
        self._failures = self._stop_code = 0
        self._problem = ""

    def attach(self, run: Run) -> None:
        self.rules = _best_rules(self.save_best, self.rule, run.monitored)
        if self.interval < 0:
            logger.info("hooks.checkpoint.interval=-1: no checkpoint will be written")
            return
        if not self.save_optimizer:
            logger.warning("hooks.checkpoint.save_optimizer=false: the checkpoints cannot be resumed from")
        if run.world.is_main:
            folder = run.checkpoint_folder or run.folder / "checkpoints"
            self._store = Store(folder, list(self.rules), self.max_keep_ckpts)
            self._store.open()

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
        if self._saver.busy:
            self._note(self._saver.poll)
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
                self._saver.close()

    @contextmanager
    def rolling_back(self, run: Run) -> Iterator[None]:
        self.drain()  # the newest checkpoint may still be on its way to the disk
        yield

    def newest_checkpoint(self) -> Path | None:
        newest = self._store.manifests()[-1:] if self._store is not None else []
        return self._store.folder / newest[0].name if self._store is not None and newest else None

    def best_checkpoint(self, metric: str, step: int | None = None) -> Path | None:
        if self._store is None or metric not in self.best or step not in (None, self.best[metric]["step"]):
            return None
        return self._store.best_path(metric)

    def restored(self, run: Run, source: Path) -> None:
        if self._store is None or (home := source.resolve().parent) == self._store.folder.resolve():
            return
        steps = {name: int(best["step"]) for name, best in self.best.items() if name in self.rules}
        for name in self._store.adopt_best(home, steps):
            logger.warning(
                "the best checkpoint by %s, of step %d, is no longer in %s: the best from here on is kept",
                name, steps[name], home,
            )  # fmt: skip
            del self.best[name]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "saved": list(self._saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = {name: dict(value) for name, value in state["best"].items()}
        self._saved = (int(state["saved"][0]), int(state["saved"][1]))
        self._beaten = {}

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
        if self.every_seconds is not None:
            elapsed = time.monotonic() - self._saved_at >= self.every_seconds
            is_due |= bool(run.world.agree(int(elapsed)))
        return is_due

    def _stem(self, run: Run) -> str:
        """The file's name: by epoch only where the epoch is over and nothing of it is left to do."""
        progress = run.state.progress
        if not self.by_epoch:
            return self.filename.format(progress.step)
        pending = run.stop_reason is not None and progress.evaluated < progress.step
        return f"iter_{progress.step}" if progress.batch or pending else self.filename.format(progress.epoch)

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
        if self._store is None:
            return
        entry = Save(
            stem=self._stem(run),
            step=progress.step,
            epoch=progress.epoch,
            evaluated=progress.evaluated,
            kind=FULL if self.save_optimizer else WEIGHTS,
            periodic=periodic,
            best=list(self._in_flight),
            metrics=self._metrics,
            config_sha256=config_sha256(run),
        )
        run.visualizer.flush()
        parameters = frozenset(name for name, _ in run.state.model.named_parameters())
        write = partial(write_finite, self._store, entry, parameters)

        def write_after_rows(state: Any) -> str:
            run.visualizer.sync()  # a curve reaches as far as the checkpoint, even after a power cut
            return write(state)

        self._saver.submit(state, write_after_rows)

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
        """Waits until the save in flight is on disk, or has failed: then it is said, and counted."""
        self._note(self._saver.drain)

    def _note(self, ending: Callable[[], str | None]) -> None:
        try:
            name = ending()
        except (SaveError, DataError) as error:
            self._take_back(error)
            return
        if name is not None:
            self._failures = 0
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


def _best_rules(names: Sequence[str], given: Sequence[str], known: Mapping[str, str | None]) -> dict[str, str]:
    """Each metric to keep the best by, in order, with `greater` or `less`.

    Raises:
        ConfigError: an unknown metric, a wrong number of rules, or a direction that nobody knows.
    """
    if given and len(given) not in (1, len(names)):
        raise ConfigError(
            f"hooks.checkpoint.rule has {len(given)} entries for {len(names)} of save_best; give one each"
        )
    rules = {}
    for index, name in enumerate(names):
        metric = resolve(name, known, "hooks.checkpoint.save_best")
        rule = given[min(index, len(given) - 1)] if given else None
        rules[metric] = resolve_rule(metric, known, rule, "hooks.checkpoint.rule")
    return rules


def _checked_filename(filename: str | None, by_epoch: bool) -> str:
    pattern = ("epoch_{}" if by_epoch else "iter_{}") if filename is None else filename.removesuffix(".pth")
    if not re.fullmatch(r"[\w.-]*\{\}[\w.-]*", pattern) or pattern.startswith("."):
        raise ConfigError(
            f"hooks.checkpoint.filename must be letters, digits, '_', '-' and '.' with one {{}} for the number, "
            f"got {filename!r}"
        )
    return pattern
