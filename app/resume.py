"""Where a run begins: fresh, with weights, or where a checkpoint left off."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import yaml
from omegaconf import DictConfig

from app.checkpoint import contents
from app.checkpoint.download import local_file
from app.checkpoint.recovery import newest_intact
from app.config.wording import show
from app.core.hook import Hook
from app.core.ranks import World
from app.core.state import Run
from app.errors import ConfigError
from app.files import read_json, write_json
from app.runs import folder, start
from app.runs.record import changes
from app.runs.summary import position

logger = logging.getLogger(__name__)


def checkpoint_folder(cfg: DictConfig, place: Path) -> Path:
    """Return `checkpoints/` in the run folder, or the run's folder below `hooks.checkpoint.out_dir`."""
    hook = cfg.hooks.get("checkpoint")
    root = hook.get("out_dir") if hook is not None else None
    if not root:
        return place / folder.CHECKPOINTS
    own, top = place.absolute(), Path(cfg.output_root).absolute()
    return Path(root, own.relative_to(top) if own.is_relative_to(top) else Path(cfg.name, own.name))


def choose_seed(cfg: DictConfig, place: Path, source: Path | None, world: World) -> int:
    """Return the configured seed, else that of the checkpoint or the folder, else a new one; store it in the folder."""
    seed = cfg.randomness.seed
    if seed is None and source is not None:
        seed = contents.peek(source)["seed"]
    if seed is None and world.is_main:
        stored = read_json(place / folder.SEED)
        seed = stored["seed"] if stored and "seed" in stored else secrets.randbits(31)
    seed = world.broadcast(seed)
    if world.is_main:
        write_json(place / folder.SEED, {"seed": seed})
    logger.info("seed %d%s", seed, "" if cfg.randomness.seed is not None else " (randomness.seed=null)")
    return int(seed)


def classes_of(source: Path) -> list[str]:
    """The class names of the run that saved `source`."""
    return list(contents.peek(source)["data"]["classes"])


def find_source(cfg: DictConfig, place: Path, checkpoints: Path, world: World) -> Path | None:
    """Find the checkpoint to resume from, the same on every rank; None for a fresh start. Log which.

    Raises:
        ConfigError: a fresh run was asked for in a folder that holds one.
        CheckpointError: the named checkpoint is missing, or all of the folder's are damaged.
    """
    return world.broadcast(_find_source(cfg, place, checkpoints) if world.is_main else None)


def _find_source(cfg: DictConfig, place: Path, checkpoints: Path) -> Path | None:
    if not folder.wants_resume(cfg.resume):
        taken = place if folder.has_checkpoint(place) else checkpoints if folder.holds_checkpoint(checkpoints) else None
        if taken is not None:
            raise ConfigError(
                f"{taken} already holds a run; use resume=true to continue it, "
                "or leave hydra.run.dir out (or name another) to start a new one"
            )
        return None
    own = next(filter(folder.holds_checkpoint, (checkpoints, place / folder.CHECKPOINTS)), checkpoints)
    named = folder.resume_path(cfg.resume, cfg.load_from)
    if named is not None and not (start.restarted() and folder.holds_checkpoint(own)):
        source = local_file(named)
        logger.info("resuming from %s", source)
        return source
    found = _newest(own)
    if found is not None:
        if cfg.resume in (True, "true", "auto"):
            say_passed_over(place)
        logger.info("resuming from %s", found)
    elif cfg.resume == "auto" and cfg.load_from is not None:
        logger.info(
            "resume=auto: no checkpoint in %s; starting from the weights of load_from=%s", checkpoints, cfg.load_from
        )
    else:
        logger.info("resume=%s: no checkpoint in %s; starting fresh", str(cfg.resume).lower(), checkpoints)
    return found


def say_passed_over(run: Path) -> None:
    """Warn when another run was started later, but has nothing to go on from."""
    if (last := folder.passed_over(run)) is not None:
        logger.warning("the last run, %s, has no checkpoint, killed before its first save? Going on with %s", last, run)


def _newest(checkpoints: Path) -> Path | None:
    found = newest_intact(checkpoints)
    return None if found is None else checkpoints / found.name


def find_tested(cfg: DictConfig, world: World) -> str:
    """Find what mode=test evaluates without `load_from`: the named checkpoint, or the newest of the newest run.

    Raises:
        ConfigError: nothing was named, and there is no run.
    """
    named = folder.resume_path(cfg.resume, None)
    root = Path(cfg.output_root, cfg.name)
    if named is None and folder.wants_resume(cfg.resume) and (newest := folder.newest_run(root)) is not None:
        say_passed_over(newest)
        found = world.broadcast(_newest(checkpoint_folder(cfg, newest)) if world.is_main else None)
        named = None if found is None else str(found)
    if named is None:
        raise ConfigError(
            f"mode=test needs a checkpoint: load_from=PATH, or resume=true for the newest of a run below {root}"
        )
    return named


def restore(run: Run, source: Path) -> None:
    """Load the checkpoint into the run; log what has changed since it was saved."""
    state = contents.load(source)
    ignored = ("resume", "load_from", "output_root", "trusted_packages", "name")
    then = yaml.safe_load(state["config"])
    for key, old, new in changes(then, run.config):
        if key.split(".")[0] not in ignored:
            logger.info("changed since the checkpoint: %s = %s (was %s)", key, show(new), show(old))
    for note in contents.restore(run, state, source):
        logger.warning(note)
    for hook in run.hooks.values():
        hook.restored(run, source)
    logger.info("restored %s", position(run))


def finished(run: Run) -> bool:
    """Whether nothing is left to do, which is logged: a restored hook has stopped the run, or its length is reached."""
    progress = run.state.progress
    if run.stop_reason is not None:
        logger.info("already finished at %s: %s", position(run), run.stop_reason)
        return True
    if run.finished and progress.evaluated == progress.step:
        logger.info("already finished at %s; a longer train.max_epochs (max_iters) goes on", position(run))
        return True
    return False


def is_concluded(run: Run) -> bool:
    """Whether `DONE.json` says that the run ended where it is now, or nothing of the run is in this folder."""
    if not folder.has_checkpoint(run.folder):
        return True
    done = read_json(run.folder / folder.DONE) or {}
    return (done.get("step"), done.get("length")) == (run.state.progress.step, run.length)


class FirstStep(Hook):
    """Make the run the newest of its experiment once its first step since this start is done."""

    def __init__(self, start: int) -> None:
        """`start`: the step that the run begins at."""
        self.start, self.counted = start, False

    def commit(self, run: Run) -> None:
        if not self.counted and run.state.progress.step != self.start:
            self.counted = True
            if run.world.is_main:
                folder.count_start(run.folder)


def roll_back(run: Run, checkpoints: Path) -> bool:
    """Return to the newest intact checkpoint; False when there is none."""
    world = run.world
    found = world.broadcast(_newest(checkpoints) if world.is_main else None)
    if found is None:
        return False
    contents.restore(run, contents.load(found), found)
    run.visualizer.rewind(run.state.progress.step)
    logger.warning("rolled back to %s, %s", found, position(run))
    return True
