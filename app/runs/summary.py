"""What a run says of itself at its start and at its end."""

from __future__ import annotations

import logging
from pathlib import Path

from app.core.hook import priority_of
from app.core.state import Run
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
    """The end of a run in words, and `DONE.json` when it is complete."""
    best = None if run.checkpoint_folder is None else run.checkpoint_folder / "best.pth"
    if run.stop_reason is not None:
        logger.info("stopped at %s after %.1f s: %s", position(run), seconds, run.stop_reason)
    else:
        logger.info("done at %s after %.1f s", position(run), seconds)
    if monitor.best is not None:
        kept = list(getattr(run.hooks.get("checkpoint"), "rules", ()))  # best.pth is the best by the first of them
        place = f": {shown(best)}" if best is not None and best.exists() and kept[:1] == [monitor.metric] else ""
        logger.info("best %s %.4f at epoch %d%s", monitor.metric, monitor.best, monitor.best_epoch, place)
    logger.info("run folder: %s", shown(run.folder))
    if run.exit_code:
        logger.info("to go on: python -m app %s resume=true", " ".join(provenance.overrides()))
    elif best is not None and best.exists():
        logger.info("next: python -m app %smode=test load_from=%s", provenance.choices(), shown(best))
    if run.exit_code == 0:
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
