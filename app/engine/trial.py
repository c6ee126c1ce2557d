"""`check=true`: everything once, before anything expensive."""

from __future__ import annotations

import logging
import math
import time

import torch

from app.checkpoint import contents
from app.checkpoint.weights import load_weights, read_weights
from app.core.state import Run
from app.engine.loop import Autocast, make_train_step
from app.errors import DataError

logger = logging.getLogger(__name__)


def try_out(run: Run, clip_norm: float | None, autocast: Autocast) -> None:
    """One train step, one evaluation step, one save and one load of everything as configured.

    Raises:
        DataError: a loss is not finite.
    """
    batch = next(iter(run.data.train(0, 0)))
    info = make_train_step(run, clip_norm, autocast)(batch, 0.0, time.perf_counter())
    loss = run.world.sum(info.loss.double()).item()
    if not math.isfinite(loss):
        raise DataError(f"the loss of the first step is {loss}; look at the data's scale, optim.lr and train.amp")
    logger.info("check: one training step of %d images, loss %.4f", batch.size, loss)
    logger.info("check: one evaluation step of %d images", evaluate_once(run, autocast))
    state = contents.collect(run)
    if run.world.is_main:
        path = run.folder / "check.pth"
        torch.save(state, path)
        size_mb = path.stat().st_size / 1e6
    run.world.barrier()
    contents.restore(run, contents.load(run.folder / "check.pth"))
    # What load_from and mode=test do with the file.
    load_weights(run.state.model, read_weights(str(run.folder / "check.pth"), "check"), run.data.classes, strict=True)
    run.world.barrier()
    if run.world.is_main:
        path.unlink()
        logger.info("check: saved and loaded %.1f MB", size_mb)
    logger.info("check passed: this configuration trains, evaluates, saves and loads")


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
