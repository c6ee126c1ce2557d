"""TensorBoard event files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.runs.record import flat
from app.visualizer.base import require

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Scalars, pictures, tables as text, and the configuration as hyper-parameters with the final metrics."""

    def __init__(
        self, folder: Path, run_name: str, experiment: str, group: str | None = None, flush_seconds: int = 10
    ) -> None:
        require("torch.utils.tensorboard", "tensorboard", "pip install tensorboard")
        self.folder = Path(folder) / "tensorboard"
        self.flush_seconds = flush_seconds
        self.purge_step: int | None = None
        self.opened: SummaryWriter | None = None
        self.settings: Mapping[str, Any] = {}
        self.step = 0
        self.epoch_step = -1

    @property
    def writer(self) -> SummaryWriter:
        """Opened at the first write: only then is it known from which step on older events are void."""
        from torch.utils.tensorboard import SummaryWriter

        if self.opened is None:
            self.opened = SummaryWriter(self.folder, purge_step=self.purge_step, flush_secs=self.flush_seconds)
            if self.settings:
                self.opened.add_text("config", fenced(self.settings), self.purge_step or 0)
        return self.opened

    def config(self, config: Mapping[str, Any]) -> None:
        self.settings = config

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        new = {} if step == self.epoch_step else {"epoch": epoch}
        self.step, self.epoch_step = max(self.step, step), step
        for name, value in {**values, **new}.items():
            self.writer.add_scalar(name, value, step)

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        for index, image in enumerate(images):
            tag = name if len(images) == 1 else f"{name}/{index}"
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        if len(rows) * len(columns) <= 2500:
            self.writer.add_text(name, markdown(columns, rows), step)

    def rewind(self, step: int) -> None:
        """Later events are void: TensorBoard drops all from `purge_step` on when it reads the new file."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None
        self.step, self.epoch_step = step, -1
        self.purge_step = step + 1 if any(self.folder.glob("events.*")) else None

    def flush(self) -> None:
        if self.opened is not None:
            self.opened.flush()

    def sync(self) -> None:
        """Unlike W&B and MLflow it is not sent again after a resume what a power cut took."""
        self.flush()
        for file in self.folder.glob("events.*"):
            with file.open("rb") as events:
                os.fsync(events.fileno())

    def close(self, summary: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        metrics = {f"final/{name}": value for name, value in summary.items()}
        chosen = {name: value for name, value in flat(self.settings) if isinstance(value, (bool, int, float, str))}
        if chosen and metrics:
            file_writer = self.writer._get_file_writer()  # type: ignore[no-untyped-call]
            for part in hparams(chosen, metrics):  # type: ignore[no-untyped-call]
                file_writer.add_summary(part, self.step)
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, self.step)
        if self.opened is not None:
            self.opened.close()
            self.opened = None


def fenced(config: Mapping[str, Any]) -> str:
    """The configuration as a YAML block of Markdown."""
    import yaml

    return f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)}```"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[object]) -> str:
        shown = [f"{cell:.4f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in cells]
        return f"| {' | '.join(shown)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
