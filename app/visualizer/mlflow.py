"""MLflow."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.files import write_text
from app.runs.record import flat
from app.visualizer.base import require
from app.visualizer.csv_text import csv_text
from app.visualizer.jsonl import scalars

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

SEND_SECONDS = 2.0
"""Metrics are sent together, at most this late while new ones come."""
SEND_VALUES = 500
"""Or as soon as there are so many; MLflow takes at most 1000."""
PARAM_BATCH, PARAM_LENGTH = 100, 500


class Mlflow:
    """One MLflow run for all launches of a run: its id lies in vis_data.

    MLflow cannot delete metrics. After a resume, values that it already has of a step are not sent again.
    """

    def __init__(
        self,
        folder: Path,
        run_name: str,
        experiment: str,
        group: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both read at import
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every table of a new database
        require("mlflow.tracking", "mlflow", "pip install 'hydra-experiment-app[mlflow]'")
        self.folder = Path(folder)
        self.run_name, self.experiment, self.group = run_name, experiment, group
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.tags = dict(tags or {})
        self.settings: Mapping[str, Any] = {}
        self.opened: MlflowClient | None = None
        self.run_id = ""
        self.known_steps: dict[str, int] = {}
        self.waiting: list[Metric] = []
        self.sent = time.monotonic()

    @property
    def client(self) -> MlflowClient:
        """Opened at the first use, in the backend's own thread: it may take long."""
        if self.opened is None:
            self.opened = self.open()
        return self.opened

    def open(self) -> MlflowClient:
        """Connect, and make or reopen the run."""
        from mlflow.tracking import MlflowClient

        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "mlflow_run_id"
        self.run_id = file.read_text().strip() if file.exists() else ""
        artifacts = None
        if self.tracking_uri is None:
            database = self.folder.absolute() / "mlflow.db"
            artifacts = (self.folder.absolute() / "mlflow_artifacts").as_uri()
            if not self.run_id:  # a kill while the tables were made leaves a file that MLflow refuses
                for left in self.folder.glob("mlflow.db*"):
                    left.unlink()
            client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        else:
            client = MlflowClient(tracking_uri=self.tracking_uri)
        if self.run_id:
            client.update_run(self.run_id, status="RUNNING")
            for name in client.get_run(self.run_id).data.metrics:
                steps = [metric.step for metric in client.get_metric_history(self.run_id, name)]
                self.known_steps[name] = max(steps)
        else:
            tags = {**self.tags, **({"group": self.group} if self.group else {})}
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                experiment_id = client.create_experiment(self.experiment, artifact_location=artifacts)
            else:
                experiment_id = experiment.experiment_id
            self.run_id = client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id
            write_text(file, self.run_id)
        return client

    def config(self, config: Mapping[str, Any]) -> None:
        import yaml
        from mlflow.entities import Param, RunTag

        client = self.client
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        client.log_text(self.run_id, text, "config.yaml")
        known = client.get_run(self.run_id).data.params
        wished = {fit_name(name): str(value)[:PARAM_LENGTH] for name, value in flat(config)}
        new = [Param(name, value) for name, value in wished.items() if name not in known]
        for begin in range(0, len(new), PARAM_BATCH):
            client.log_batch(self.run_id, params=new[begin : begin + PARAM_BATCH])
        changed = [
            RunTag(f"resumed.{name}", value) for name, value in wished.items() if known.get(name, value) != value
        ]
        for begin in range(0, len(changed), PARAM_BATCH):  # a parameter of a run cannot be changed
            client.log_batch(self.run_id, tags=changed[begin : begin + PARAM_BATCH])

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        _ = self.client
        for name, value in {**values, "epoch": epoch}.items():
            key = fit_name(name)
            if step > self.known_steps.get(key, -1):
                self.known_steps[key] = step
                self.waiting.append(Metric(key, float(value), now, step))
        if len(self.waiting) >= SEND_VALUES or time.monotonic() - self.sent > SEND_SECONDS:
            self.flush()

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        for index, image in enumerate(images):
            self.client.log_image(self.run_id, image, f"images/{fit_name(name)}/step_{step}_{index}.png")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self.client.log_text(self.run_id, csv_text(columns, rows), f"tables/{fit_name(name)}/step_{step}.csv")

    def rewind(self, step: int) -> None:
        """Drop what waits of later steps; what was sent stays. Send what a kill kept here."""
        self.waiting = [metric for metric in self.waiting if metric.step <= step]
        for row in scalars(self.folder / "scalars.jsonl", step):
            self.scalars(*row)

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for begin in range(0, len(waiting), SEND_VALUES):
            self.client.log_batch(self.run_id, metrics=waiting[begin : begin + SEND_VALUES])
        self.sent = time.monotonic()

    def close(self, summary: Mapping[str, float]) -> None:
        self.flush()
        for name, value in summary.items():
            self.client.set_tag(self.run_id, f"final.{fit_name(name)}", f"{value:.6g}")
        self.client.set_terminated(self.run_id)


def fit_name(name: str) -> str:
    """`name` with what MLflow does not allow replaced."""
    return re.sub(r"[^\w./ :-]", "_", name, flags=re.ASCII)[:250]
