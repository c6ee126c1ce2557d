"""The keys of each backend, through the real command line."""

from pathlib import Path

import pytest
import wandb_file
from runs import RunApp

from app.visualizer.tensorboard import TensorBoard

TINY = ("data.limit_train=32", "data.limit_val=16", "model=mlp", "schedule.warmup=0", "train.max_epochs=1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between MLflow and its database library
def test_names_of_runs_and_places(run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of a database of its own below it
    monkeypatch.setattr("app.visualizer.fanout.STALL_SECONDS", 120.0)
    database = f"sqlite:///{tmp_path}/shared.db"
    wandb = ("mode=offline", "project=our_project", "name=our_run", "entity=our_team", "group=our_group")
    mlflow = (f"tracking_uri={database}", "experiment=our_experiment", "run_name=our_run")
    folder = run_app(
        "run", *TINY, "+visualizer=[wandb,mlflow]", "visualizer.local.page=false",
        *(f"visualizer.wandb.{setting}" for setting in wandb),
        *(f"visualizer.mlflow.{setting}" for setting in mlflow),
    )  # fmt: skip
    vis_data = folder / "vis_data"
    assert (vis_data / "scalars.jsonl").exists()
    assert not (vis_data / "report.html").exists()

    (file,) = vis_data.glob("wandb/offline-run-*/*.wandb")
    run = next(record.run for record in wandb_file.records(file) if record.WhichOneof("record_type") == "run")
    found = (run.project, run.display_name, run.entity, run.run_group)
    assert found == ("our_project", "our_run", "our_team", "our_group")

    from mlflow.tracking import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("our_experiment")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "our_run"
    assert "val/top1" in logged.data.metrics
    assert not (vis_data / "mlflow.db").exists()


def test_tensorboard_is_flushed_as_often_as_asked(tmp_path: Path) -> None:
    backend = TensorBoard(tmp_path, "run", "digits", flush_seconds=37)
    assert backend.writer.flush_secs == 37
    backend.close({})
