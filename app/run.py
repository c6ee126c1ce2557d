"""One job: build, restore, fit or test, and say how it ended."""

from __future__ import annotations

import logging
import math
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from app import checkpoint, dist, env, folder, log, provenance
from app.build import amp_mode, build_run
from app.dist import World
from app.engine import Autocast, autocast_for, fit, make_train_step, test
from app.errors import CheckpointError, ConfigError, DataError, RunError
from app.hooks.base import bind, call, priority_of
from app.hooks.monitor import Monitor
from app.optim import describe as describe_optimizer
from app.record import changes, plain
from app.state import Run
from app.weights import load_into

logger = logging.getLogger(__name__)


class Stopped(RunError):  # noqa: N818 - not an error: the run ended as asked
    """The run was stopped on purpose, saved, and left in order; the exit code says why."""


def run_job(cfg: DictConfig) -> float | None:
    """Runs one composed and checked configuration in the folder that Hydra made; returns the monitored metric's best.

    Raises:
        RunError: with a message for a person and the exit code of spec section 1.
    """
    with ExitStack() as stack:
        world = stack.enter_context(dist.connected(cfg.env))
        place = Path(world.broadcast(provenance.output_dir() if world.is_main else ""))
        log.quiet_other_ranks(world.rank)
        if world.is_main:
            stack.enter_context(folder.held(place))
        settings = env.applied(plain(cfg.env), deterministic=cfg.randomness.deterministic, local_size=world.local_size)
        for note in stack.enter_context(settings):
            logger.info(note)
        if world.is_main:
            folder.link_latest(place)
            provenance.write(place, world.device)
        if cfg.check:
            try_out(cfg, place, world)
            return None
        return run_test(cfg, place, world) if cfg.mode == "test" else train(cfg, place, world)


def train(cfg: DictConfig, place: Path, world: World) -> float | None:
    """Trains, or goes on training, in `place`."""
    started = time.monotonic()
    checkpoints = checkpoint_folder(cfg, place)
    source = find_source(cfg, place, checkpoints, world)
    run = build_run(cfg, place, world, choose_seed(cfg, place, source, world), with_init=source is None)
    run.checkpoint_folder = checkpoints
    monitor = run.hooks["monitor"]
    assert isinstance(monitor, Monitor)
    points = bind(run.hooks)
    error: BaseException | None = None
    try:
        describe(run)
        run.visualizer.config(run.config)
        call("attach", points["attach"], run)
        if source is not None:
            restore(run, source)
        elif cfg.load_from is not None:
            load_weights(run, cfg.load_from)
        run.visualizer.rewind(run.state.progress.step)
        run.rollback = lambda: roll_back(run, checkpoints)
        if run.finished:
            logger.info("already finished at %s; a longer train.max_epochs (max_iters) goes on", position(run))
            return monitor.best
        fit(
            run,
            val_interval=cfg.train.val_interval,
            val_begin=cfg.train.val_begin,
            clip_norm=cfg.train.clip_norm,
            autocast=autocast_for(amp_mode(cfg.train.amp), world.device),
        )
    except BaseException as caught:
        error = caught
        raise
    finally:
        finish(run, points, monitor, error)
    if world.is_main:
        conclude(run, monitor, time.monotonic() - started)
    if run.leave is not None:
        run.leave()
    if run.exit_code:
        raise Stopped(f"stopped: {run.stop_reason}", run.exit_code)
    return monitor.best


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


def run_test(cfg: DictConfig, place: Path, world: World) -> float | None:
    """Evaluates the checkpoint of `load_from` (or the one that `resume` means)."""
    location = cfg.load_from
    if location is None:
        source = find_source(cfg, place, checkpoint_folder(cfg, place), world)
        if source is None:
            raise ConfigError("mode=test needs a checkpoint: load_from=PATH, or resume=true for the newest run's")
        location = str(source)
    run = build_run(cfg, place, world, choose_seed(cfg, place, None, world), with_init=False)
    run.hooks = {name: hook for name, hook in run.hooks.items() if hook.in_test}
    monitor = run.hooks["monitor"]
    assert isinstance(monitor, Monitor)
    points = bind(run.hooks)
    error: BaseException | None = None
    try:
        run.visualizer.config(run.config)
        call("attach", points["attach"], run)
        load_weights(run, location)
        test(run, autocast_for(amp_mode(cfg.train.amp), world.device))
    except BaseException as caught:
        error = caught
        raise
    finally:
        finish(run, points, monitor, error)
    return monitor.best


def try_out(cfg: DictConfig, place: Path, world: World) -> None:
    """`check=true`: one train step, one evaluation step, one save and one load of everything as configured.

    Raises:
        DataError: the loss is not finite.
    """
    run = build_run(cfg, place, world, choose_seed(cfg, place, None, world), with_init=True)
    points = bind(run.hooks)
    autocast = autocast_for(amp_mode(cfg.train.amp), world.device)
    error: BaseException | None = None
    try:
        describe(run)
        call("attach", points["attach"], run)
        if cfg.load_from is not None:
            load_weights(run, cfg.load_from)
        batch = next(iter(run.data.train(0, 0)))
        info = make_train_step(run, cfg.train.clip_norm, autocast)(batch, 0.0, time.perf_counter())
        loss = world.sum(info.loss.double()).item()
        if not math.isfinite(loss):
            raise DataError(f"the loss of the first step is {loss}; look at the data's scale, optim.lr and train.amp")
        logger.info("check: one training step of %d images, loss %.4f", batch.size, loss)
        size = evaluate_once(run, autocast)
        logger.info("check: one evaluation step of %d images", size)
        state = checkpoint.collect(run)
        if world.is_main:
            path = place / "check.pth"
            torch.save(state, path)
            checkpoint.restore(run, checkpoint.load(path), path)
            logger.info("check: saved and loaded %.1f MB", path.stat().st_size / 1e6)
            path.unlink()
        logger.info("check passed: this configuration trains, evaluates, saves and loads")
    except BaseException as caught:
        error = caught
        raise
    finally:
        run.hooks.pop("checkpoint", None)
        finish(run, bind(run.hooks), run.hooks["monitor"], error)  # type: ignore[arg-type]


def evaluate_once(run: Run, autocast: Autocast) -> int:
    """One evaluation batch through model and metrics; returns its size."""
    run.state.model.eval()
    with torch.inference_mode(), autocast():
        for batch in run.data.evaluate("val"):
            if batch is not None:
                loss = run.loss(run.state.model(batch.images).float(), batch.targets)
                if not torch.isfinite(loss):
                    raise DataError(f"the loss of the first evaluation batch is {loss.item()}")
                return batch.size
    return 0


def checkpoint_folder(cfg: DictConfig, place: Path) -> Path:
    """`checkpoints/` in the run folder, or below `hooks.checkpoint.out_dir` a folder named after the run."""
    hook = cfg.hooks.get("checkpoint")
    root = hook.get("out_dir") if hook is not None else None
    return Path(root, cfg.name, place.name) if root else place / folder.CHECKPOINTS


def choose_seed(cfg: DictConfig, place: Path, source: Path | None, world: World) -> int:
    """The configured seed; else the one that the checkpoint or the folder holds; else a new one, stored there."""
    seed = cfg.randomness.seed
    if seed is None and source is not None:
        seed = checkpoint.peek(source)["seed"]
    if seed is None and world.is_main:
        stored = folder.read_json(place / folder.SEED)
        seed = stored["seed"] if stored else secrets.randbits(31)
    seed = world.broadcast(seed)
    if world.is_main:
        folder.write_json(place / folder.SEED, {"seed": seed})
    logger.info("seed %d%s", seed, "" if cfg.randomness.seed is not None else " (randomness.seed=null)")
    return int(seed)


def find_source(cfg: DictConfig, place: Path, checkpoints: Path, world: World) -> Path | None:
    """The checkpoint to go on from, the same on every rank; None for a fresh start. Says which in one line.

    Raises:
        ConfigError: a fresh run was asked for in a folder that holds one.
        CheckpointError: the named checkpoint is missing, or all of the folder's are damaged.
    """
    return world.broadcast(_find_source(cfg, place, checkpoints) if world.is_main else None)


def _find_source(cfg: DictConfig, place: Path, checkpoints: Path) -> Path | None:
    if not folder.wants_resume(cfg.resume):
        if folder.has_checkpoint(place):
            raise ConfigError(
                f"{place} already holds a run; use resume=true to continue it, "
                "or leave hydra.run.dir out (or name another) to start a new one"
            )
        return None
    named = folder.resume_path(cfg.resume, cfg.load_from)
    if named is not None:
        source = Path(named)
        if not source.is_file():
            raise CheckpointError(f"{'resume' if isinstance(cfg.resume, str) else 'load_from'}={named}: no such file")
        logger.info("resuming from %s", source)
        return source
    found = checkpoint.newest_intact(checkpoints)
    if found is not None:
        logger.info("resuming from %s", found)
    elif cfg.resume == "auto" and cfg.load_from is not None:
        logger.info(
            "resume=auto: no checkpoint in %s; starting from the weights of load_from=%s", checkpoints, cfg.load_from
        )
    else:
        logger.info("resume=%s: no checkpoint in %s; starting fresh", str(cfg.resume).lower(), checkpoints)
    return found


def restore(run: Run, source: Path) -> None:
    """Puts the checkpoint into the run and says what has changed since it was saved."""
    state = checkpoint.load(source)
    ignored = ("resume", "load_from", "output_root", "trusted_packages", "name")
    then = yaml.safe_load(state["config"])
    for key, old, new in changes(then, run.config):
        if key.split(".")[0] not in ignored:
            logger.info("changed since the checkpoint: %s = %s (was %s)", key, new, old)
    for note in checkpoint.restore(run, state, source):
        logger.warning(note)
    run.restored_from = source
    logger.info("restored %s", position(run))


def load_weights(run: Run, location: str) -> None:
    """Takes the weights of `load_from`, the average where the file has one, and reports what matched."""
    logger.info(load_into(run.state.model, location, "load_from"))


def roll_back(run: Run, checkpoints: Path) -> bool:
    """Returns to the newest intact checkpoint; False when there is none."""
    checkpoint_hook = run.hooks.get("checkpoint")
    drain = getattr(checkpoint_hook, "drain", None)
    if drain is not None:
        drain()
    world = run.world
    found = world.broadcast(checkpoint.newest_intact(checkpoints) if world.is_main else None)
    if found is None:
        return False
    guard = {name: hook.state_dict() for name, hook in run.hooks.items() if name == "nan_guard"}
    checkpoint.restore(run, checkpoint.load(found), found)
    for name, state in guard.items():
        run.hooks[name].load_state_dict(state)
    run.visualizer.rewind(run.state.progress.step)
    logger.warning("rolled back to %s, %s", found, position(run))
    return True


def describe(run: Run) -> None:
    """What is about to run, in a few lines."""
    world, data = run.world, run.data
    parameters = sum(parameter.numel() for parameter in run.state.model.parameters())
    logger.info(
        "%s: %d parameters; %d training and %d validation images of %dx%dx%d, %d classes; on %s%s",
        type(run.state.model).__name__.removeprefix("FSDP"), parameters, data.train_size, data.eval_size("val"),
        data.channels, data.image_size, data.image_size, len(data.classes), world.device,
        f" and {world.size - 1} other process(es)" if world.size > 1 else "",
    )  # fmt: skip
    logger.info(describe_optimizer(run.state.optimizer))
    order = sorted(run.hooks.items(), key=lambda item: priority_of(item[1]))
    logger.info("hooks: %s", ", ".join(f"{name} ({priority_of(hook)})" for name, hook in order))


def position(run: Run) -> str:
    progress = run.state.progress
    return f"epoch {progress.epoch}, step {progress.step}"


def conclude(run: Run, monitor: Monitor, seconds: float) -> None:
    """The end of a run in words, and `DONE.json` when it is complete."""
    best = None if run.checkpoint_folder is None else run.checkpoint_folder / "best.pth"
    if run.stop_reason is not None:
        logger.info("stopped at %s after %.1f s: %s", position(run), seconds, run.stop_reason)
    else:
        logger.info("done at %s after %.1f s", position(run), seconds)
    if monitor.best is not None:
        place = f": {shown(best)}" if best is not None and best.exists() else ""
        logger.info("best %s %.4f at epoch %d%s", monitor.metric, monitor.best, monitor.best_epoch, place)
    logger.info("run folder: %s", shown(run.folder))
    if run.exit_code:
        logger.info("to go on: python -m app %s resume=true", " ".join(provenance.overrides()))
    elif best is not None and best.exists():
        logger.info("next: python -m app %smode=test load_from=%s", provenance.choices(), shown(best))
    if run.exit_code == 0:
        progress = run.state.progress
        folder.write_json(
            run.folder / folder.DONE,
            {
                "step": progress.step,
                "epoch": progress.epoch,
                "by_epoch": run.by_epoch,
                "length": run.length,
                "stopped": run.stop_reason,
                "metric": monitor.metric,
                "best": monitor.best,
                "metrics": monitor.summary,
                "seconds": round(seconds, 1),
            },
        )


def shown(path: Path) -> str:
    """`path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
