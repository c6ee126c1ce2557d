"""What a run says of itself at its start and at its end."""

from __future__ import annotations

import logging
from pathlib import Path

from app.core.hook import priority_of
from app.core.nonfinite import REMEDY
from app.core.state import Run
from app.errors import DATA
from app.files import write_json
from app.hooks.monitor import Monitor
from app.optim.optimizer import describe as describe_optimizer
from app.runs import folder, provenance

logger = logging.getLogger(__name__)


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
    """Report how the run ended, what its metric came to, and the command to type next; `DONE.json` when complete."""
    if run.stop_reason is not None:
        logger.info("stopped at %s after %.1f s: %s", position(run), seconds, run.stop_reason)
    else:
        logger.info("done at %s after %.1f s", position(run), seconds)
    best = best_checkpoint(run, monitor.metric, monitor.best_step)
    if monitor.best is not None:
        where = "" if best is None else f": {shown(best)}"
        logger.info("best %s %.4f at epoch %d%s", monitor.metric, monitor.best, monitor.best_epoch, where)
    logger.info("run folder: %s", shown(run.folder))
    if run.exit_code == DATA:
        logger.info(REMEDY)  # the same command would end here again
    elif run.exit_code:
        logger.info("to go on: %s", provenance.resume_command(run.folder))
    else:
        suggest_test(run, best)
        write_done(run, monitor, seconds)


def best_checkpoint(run: Run, metric: str, step: int | None = None) -> Path | None:
    """The checkpoint that is the best by `metric` (and of `step`, where given), where one is kept."""
    found = (hook.best_checkpoint(metric, step) for hook in run.hooks.values())
    return next((path for path in found if path is not None and path.exists()), None)


def suggest_test(run: Run, best: Path | None) -> None:
    """Name the command that measures the best checkpoint: by the run's metric, or by another when only that is kept."""
    for metric in run.monitored if best is None else ():
        best = best_checkpoint(run, metric)
        if best is not None:
            logger.info("%s is the best by %s", best.name, metric)
            break
    if best is not None:
        logger.info("next: %s", provenance.test_command(shown(best)))


def write_done(run: Run, monitor: Monitor, seconds: float) -> None:
    """Write `DONE.json`: this run is complete."""
    progress = run.state.progress
    write_json(
        run.folder / folder.DONE,
        {
            "step": progress.step,
            "epoch": progress.epoch,
            "by_epoch": run.by_epoch,
            "length": run.length,
            "stopped": run.stop_reason,
            "metric": monitor.metric,
            "rule": monitor.rule,
            "best": monitor.best,
            "metrics": monitor.summary,
            "seconds": round(seconds, 1),
        },
    )


def shown(path: Path) -> str:
    """`path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
