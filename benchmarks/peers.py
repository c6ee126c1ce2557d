"""Other trainers on the same model and data, where they are installed (`uv sync --extra peers`)."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.clock import silently

Loop = Callable[[DataLoader[tuple[torch.Tensor, ...]], nn.Module], float]


def lightning(loader: DataLoader[tuple[torch.Tensor, ...]], model: nn.Module) -> float:
    """CPU seconds of one iteration of Lightning's Trainer: a row every 10 iterations, a rate per step, a checkpoint."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.times: list[float] = []

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, targets = batch
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, targets)
            self.log("loss", loss)
            self.log("top1", (logits.argmax(-1) == targets).float().mean())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def on_train_epoch_start(self) -> None:
            self.times.append(process_time())

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            log_every_n_steps=10,
            logger=CSVLogger(folder),
            callbacks=[ModelCheckpoint(folder, save_last=True), LearningRateMonitor()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        silently(lambda: trainer.fit(module, loader))
        return (process_time() - module.times[0]) / len(loader)


PEERS: dict[str, Loop] = {"lightning": lightning} if importlib.util.find_spec("lightning") else {}
PEER_NOTE = (
    "Lightning: Trainer with CSVLogger every 10 steps, a cosine rate per step, one checkpoint, no progress bar; SGD."
    if PEERS
    else "Peers were not measured: Lightning is not installed (`uv sync --extra peers`)."
) + " MMEngine, at the time of writing, cannot be installed beside this torch."


def peer_titles() -> list[str]:
    """Their columns."""
    return [name.title() for name in PEERS]
