"""Three kills and resumes with every tracker on, each read back with its own reader: one run, no duplicate row."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb_file

from app.visualizer import jsonl

STEPS = list(range(1, 31))
EVALUATIONS = [4, 8, 12, 16, 20, 24, 28]
CANARIES = {
    "CANARY": "canary0secret0value",
    "WANDB_API_KEY": "ca" * 20,
    "MLFLOW_TRACKING_PASSWORD": "canary1secret1value",
}


@pytest.fixture(scope="module")
def vis_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("launches.py")), str(folder / "vis_data")],
        cwd=folder,
        env={**environment, **CANARIES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "switched off" not in process.stderr
    return folder / "vis_data"


def test_local(vis_data: Path) -> None:
    rows = list(jsonl.read(vis_data / "scalars.jsonl"))
    assert [row["step"] for row in rows if "train/loss" in row] == STEPS
    assert [row["step"] for row in rows if "val/top1" in row] == EVALUATIONS
    assert [row["step"] for row in jsonl.read(vis_data / "images.jsonl")] == EVALUATIONS


def test_tensorboard(vis_data: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(vis_data / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == STEPS
    assert [event.value for event in losses] == pytest.approx([1 / step for step in STEPS])
    assert [event.step for event in events.Scalars("val/top1")] == EVALUATIONS
    assert [event.step for event in events.Scalars("epoch")] == STEPS
    assert [event.step for event in events.Scalars("final/val/top1")] == [30]
    assert {"val/predictions/0", "val/predictions/1"} <= set(tags["images"])
    assert events.Images("val/predictions/0")[-1].step == 28
    config = events.Tensors("config/text_summary")
    assert [event.step for event in config] == sorted({event.step for event in config})
    assert b"lr: 0.1" in config[0].tensor_proto.string_val[0]
    assert b"| cat | 0.5000 |" in events.Tensors("val/per_class/text_summary")[-1].tensor_proto.string_val[0]
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def test_wandb(vis_data: Path) -> None:
    files = sorted(vis_data.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 4
    assert len({file.name for file in files}) == 1, "one id"
    rows: list[dict[str, Any]] = [row for file in files for row in wandb_file.history(file)]
    assert [row["_step"] for row in rows] == STEPS
    assert [row["train/loss"] for row in rows] == pytest.approx([1 / step for step in STEPS])
    assert [row["_step"] for row in rows if "val/top1" in row] == EVALUATIONS
    assert all(row["val/predictions.count"] == 2 for row in rows if "val/top1" in row)
    assert rows[-1]["epoch"] == 7
    runs = [record.run for record in wandb_file.records(files[-1]) if record.WhichOneof("record_type") == "run"]
    assert (runs[0].display_name, runs[0].run_group, list(runs[0].tags)) == ("run", "sweep", ["a"])
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["optim"] == '{"lr":0.2}'.replace(":", ": ") or config["optim"] == '{"lr":0.2}'


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between MLflow and its database library
def test_mlflow(vis_data: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{vis_data / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == STEPS
    assert [metric.value for metric in history] == pytest.approx([1 / step for step in STEPS])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val/top1")] == EVALUATIONS
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "epoch")] == STEPS
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["optim.lr"] == "0.1"
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    assert tags == {"team": "vision", "group": "sweep", "resumed.optim.lr": "0.2", "final.val/top1": "0.28"}
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "images/val/predictions")}
    assert {f"images/val/predictions/step_{step}_0.png" for step in EVALUATIONS} <= pictures


def test_no_secret_is_in_any_file(vis_data: Path) -> None:
    files = [file for file in vis_data.parent.rglob("*") if file.is_file()]
    assert len(files) > 50
    for file in files:
        content = file.read_bytes()
        for name, canary in CANARIES.items():
            assert canary.encode() not in content, f"{name} in {file}"
