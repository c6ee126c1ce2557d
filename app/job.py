"""One job: build, restore, fit or test, and say how it ended."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from app import log
from app.build import amp_mode, build_run
from app.checkpoint.weights import load_weights, read_weights
from app.core import env, ranks
from app.core.hook import bind, call
from app.core.ranks import World
from app.core.state import Run
from app.engine.loop import autocast_for, fit, test
from app.engine.trial import try_out
from app.errors import RunError
from app.hooks.monitor import Monitor
from app.resume import (
    FirstStep,
    checkpoint_folder,
    choose_seed,
    classes_of,
    find_source,
    find_tested,
    finished,
    is_concluded,
    restore,
    roll_back,
)
from app.runs import folder, provenance
from app.runs.record import values
from app.runs.summary import conclude, describe

logger = logging.getLogger(__name__)


class Stopped(RunError):  # noqa: N818 - not an error: the run ended as asked
    """The run was stopped on purpose, saved, and left in order; the exit code says why."""


def run_job(cfg: DictConfig) -> float | None:
    """Runs one composed and checked configuration in the folder that Hydra made; returns the monitored metric's best.

    Raises:
        RunError: with a message for a person and the exit code of spec section 1.
    """
    with ExitStack() as stack:
        world = stack.enter_context(ranks.connected(cfg.env))
        place = Path(world.broadcast(provenance.output_dir() if world.is_main else ""))
        log.quiet_other_ranks(world.rank)
        if world.is_main:
            stack.enter_context(folder.held(place))
        settings = env.applied(values(cfg.env), deterministic=cfg.randomness.deterministic, local_size=world.local_size)
        for note in stack.enter_context(settings):
            logger.info(note)
        if world.is_main:
            provenance.write(place, world.device)
        if cfg.check:
            return check(cfg, place, world)
        if cfg.mode == "test":
            return evaluate(cfg, place, world)
        return train(cfg, place, world)


def train(cfg: DictConfig, place: Path, world: World) -> float | None:
    """Trains, or goes on training, in `place`."""
    started = time.monotonic()
    checkpoints = checkpoint_folder(cfg, place)
    source = find_source(cfg, place, checkpoints, world)
    weights = read_weights(cfg.load_from) if source is None and cfg.load_from is not None else None
    classes = classes_of(source) if source is not None else weights.classes if weights is not None else None
    seed = choose_seed(cfg, place, source, world)
    run = build_run(cfg, place, world, seed, with_init=source is None, classes=classes)
    run.checkpoint_folder = checkpoints
    if world.is_main:
        folder.link_checkpoints(place, checkpoints)
    with attached(run) as monitor:
        if source is not None:
            restore(run, source)
        elif weights is not None:
            load_weights(run.state.model, weights, run.data.classes)
        run.visualizer.rewind(run.state.progress.step)
        over = finished(run)
        if not over:
            run.hooks["first_step"] = FirstStep(run.state.progress.step)
            fit(
                run,
                val_interval=cfg.train.val_interval,
                val_begin=cfg.train.val_begin,
                clip_norm=cfg.train.clip_norm,
                autocast=autocast_for(amp_mode(cfg.train.amp), world.device),
                rollback=lambda: roll_back(run, checkpoints),
            )
    # Killed between its last save and DONE.json, a run is concluded by the next start.
    if world.is_main and not (over and is_concluded(run)):
        conclude(run, monitor, time.monotonic() - started)
    if over:
        return monitor.best
    if run.leave is not None:
        run.leave()
    if run.exit_code:
        raise Stopped(f"stopped: {run.stop_reason}", run.exit_code)
    return monitor.best


def evaluate(cfg: DictConfig, place: Path, world: World) -> float | None:
    """Evaluates the checkpoint of `load_from`, or the one that `resume` means: all of it, with its classes."""
    weights = read_weights(cfg.load_from or find_tested(cfg, world))
    seed = choose_seed(cfg, place, None, world)
    run = build_run(cfg, place, world, seed, with_init=False, classes=weights.classes)
    run.hooks = {name: hook for name, hook in run.hooks.items() if hook.in_test}
    with attached(run) as monitor:
        load_weights(run.state.model, weights, run.data.classes, strict=True)
        test(run, autocast_for(amp_mode(cfg.train.amp), world.device))
    return monitor.best


def check(cfg: DictConfig, place: Path, world: World) -> float | None:
    """`check=true`: see app.engine.trial."""
    weights = read_weights(cfg.load_from) if cfg.load_from is not None else None
    classes = None if weights is None else weights.classes
    run = build_run(cfg, place, world, choose_seed(cfg, place, None, world), with_init=True, classes=classes)
    run.hooks = {name: hook for name, hook in run.hooks.items() if hook.in_check}
    with attached(run):
        if weights is not None:
            load_weights(run.state.model, weights, run.data.classes)
        try_out(run, cfg.train.clip_norm, autocast_for(amp_mode(cfg.train.amp), world.device))
    return None


@contextmanager
def attached(run: Run) -> Iterator[Monitor]:
    """The run with its hooks attached, and everything closed at the end, whatever happens."""
    points = bind(run.hooks)
    monitor = run.hooks["monitor"]
    assert isinstance(monitor, Monitor)
    error: BaseException | None = None
    try:
        run.visualizer.config(run.config)
        describe(run)
        call("attach", points["attach"], run)
        yield monitor
    except BaseException as caught:
        error = caught
        raise
    finally:
        finish(run, points, monitor, error)


def finish(run: Run, points: dict[str, Any], monitor: Monitor, error: BaseException | None) -> None:
    """Lets every hook and backend end; an error on the way out does not hide the one that ended the run."""
    for name, method in points["finish"]:
        try:
            method(run, error)
        except Exception as second:
            second.add_note(f"raised by hooks.{name} at finish")
            if error is None:
                error = second
            else:
                logger.exception("hooks.%s failed at finish", name)
    run.visualizer.close(monitor.summary)
    run.data.close()
    if error is not None and sys.exc_info()[1] is not error:
        raise error
