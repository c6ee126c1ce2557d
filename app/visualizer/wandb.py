"""Weights & Biases."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.files import write_text
from app.visualizer.base import require
from app.visualizer.jsonl import scalars

logger = logging.getLogger(__name__)

INIT_SECONDS = 12.0
"""To reach the server; without it the run goes on without W&B."""
FINISH_SECONDS = 20.0
"""To upload what is left at the end; the rest can be sent with `wandb sync`."""
WRITE_SECONDS = 0.1
"""How often W&B's background process writes its file; what it holds in memory is lost when this process is killed."""


class Wandb:
    """One W&B run for all launches of a run: its id lies in vis_data, its steps are the run's steps.

    W&B cannot delete rows. After a resume, steps that it already has are not sent again: an exact resume would repeat
    them bit for bit. Rows of one step are sent together, when the next step begins, at `flush` or at `close`.
    """

    def __init__(
        self,
        folder: Path,
        run_name: str,
        experiment: str,
        project: str,
        name: str | None = None,
        entity: str | None = None,
        mode: str = "online",
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # `login` speaks too
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports need a network
        self.wandb = require("wandb", "wandb", "pip install wandb")
        self.folder = Path(folder)
        self.experiment, self.project, self.name = experiment, project, name or run_name
        self.entity, self.mode, self.group, self.tags = entity, mode, group, list(tags)
        self.settings: Mapping[str, Any] = {}
        self.opened: Any = None
        self.row: dict[str, Any] = {}
        self.step = -1
        self.known_step = -1
        self.step_file: int | None = None

    @property
    def run(self) -> Any:
        """Opened at the first use, in the backend's own thread: it may take long."""
        if self.opened is None:
            self.opened = self.open()
        return self.opened

    def open(self) -> Any:
        """The run on the server; without a key or a network, in files that can be sent later."""
        run_id = self.run_id()
        problem = ""
        if self.mode == "online" and not self.wandb.login(prompt=False, verify=False):
            problem = "no key (set WANDB_API_KEY or run `wandb login`)"
        try:
            run = self.init(run_id, "offline" if problem else self.mode)
        except self.wandb.errors.CommError as error:
            problem = f"cannot reach the server ({str(error).partition(chr(10))[0]})"
            self.wandb.teardown()  # the failed attempt still holds the id
            run = self.init(run_id, "offline")
        if problem:
            logger.warning(
                "visualizer.wandb: %s; writing offline, send it later with `wandb sync %s/wandb/offline-run-*`",
                problem,
                self.folder,
            )
        self.known_step = max(run.starting_step - 1, self.last_sent())
        return run

    def init(self, run_id: str, mode: Any) -> Any:
        """Open the run; ask nothing."""
        return self.wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name,
            group=self.group,
            tags=self.tags,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=self.folder,
            config={"experiment": self.experiment, **self.settings},
            settings=quiet_settings(self.wandb.Settings),
        )

    def run_id(self) -> str:
        """The id of this run folder's W&B run, made at the first launch."""
        file = self.folder / "wandb_run_id"
        known = file.read_text().strip() if file.exists() else ""
        if not known:  # a power cut leaves an empty file
            known = secrets.token_hex(4)
            write_text(file, known)
        return known

    def last_sent(self) -> int:
        """The last step that any launch has sent, whether it arrived or lies in a file; -1 before the first."""
        try:
            return int((self.folder / "wandb_step").read_bytes())
        except (OSError, ValueError):
            return -1

    def note(self, step: int) -> None:
        """Write down the step that is sent next: one system call, so that a kill leaves the old number or the new."""
        if self.step_file is None:
            self.step_file = os.open(self.folder / "wandb_step", os.O_WRONLY | os.O_CREAT, 0o666)
        os.pwrite(self.step_file, f"{step:<20}".encode(), 0)

    def config(self, config: Mapping[str, Any]) -> None:
        self.settings = config
        _ = self.run

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self.add({**values, "epoch": epoch}, step)

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        pictures = [self.wandb.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
        self.add({name: pictures}, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self.add({f"{name}_table": self.wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step)

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Add to the row of `step`."""
        if step != self.step:
            self.send()
            self.step = step
        self.row.update(values)

    def send(self) -> None:
        """Send the row, once and for all."""
        row, self.row = self.row, {}
        if row and self.step > (self.known_step if self.run else -1):
            # Noted first: a row that a kill keeps back is a gap, one that is sent twice would stay twice.
            self.note(self.step)
            self.run.log(row, step=self.step, commit=True)
            self.known_step = self.step

    def rewind(self, step: int) -> None:
        """Drop a later row that is still here; what was sent stays. Send what a kill kept here."""
        if self.step > step:
            self.row = {}
        for row in scalars(self.folder / "scalars.jsonl", step):
            self.scalars(*row)

    def flush(self) -> None:
        self.send()

    def close(self, summary: Mapping[str, float]) -> None:
        self.send()
        self.run.summary.update({f"final/{name}": value for name, value in summary.items()})
        self.run.finish()


def quiet_settings(settings: Any) -> Any:
    """An instance of W&B's `Settings`, without those that the installed version does not know.

    No output, no capture of the console, no copy of the code or of the command line; time limits everywhere.
    """
    wished: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "save_code": False,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "summary_timeout": 10,
        "x_transaction_log_flush_interval": WRITE_SECONDS,
    }
    known = settings.model_fields
    return settings(**{name: value for name, value in wished.items() if name in known})
