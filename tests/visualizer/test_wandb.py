"""W&B without a key or a network, and any backend without its package."""

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_file

from app.errors import ConfigError
from app.visualizer import wandb as module
from app.visualizer.mlflow import Mlflow
from app.visualizer.tensorboard import TensorBoard
from app.visualizer.wandb import Wandb

KEY = "ab" * 20


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings of this machine, and a server that cannot be reached."""
    import wandb

    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "INIT_SECONDS", 1.0)
    yield
    wandb.teardown()


def logged_online(folder: Path) -> list[int]:
    """The steps in the local file after a run that was meant to be online."""
    backend = Wandb(folder, "run", "digits", project="tests", mode="online")
    backend.config({"a": 1})
    backend.scalars({"train/loss": 1.0}, 1, 0)
    backend.scalars({"train/loss": 0.5}, 2, 0)
    backend.close({})
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while not (rows := list(wandb_file.history(file))) and time.monotonic() < deadline:
        time.sleep(0.05)  # another process writes the file
    return [row["_step"] for row in rows]


def test_disabled_writes_no_run(alone: None, tmp_path: Path) -> None:
    backend = Wandb(tmp_path / "vis_data", "run", "digits", project="tests", mode="disabled")
    backend.config({"a": 1})
    backend.scalars({"train/loss": 1.0}, 1, 0)
    backend.close({"val/top1": 1.0})
    assert not list((tmp_path / "vis_data").rglob("*.wandb"))


@pytest.mark.parametrize(("key", "problem"), [(None, "no key"), (KEY, "cannot reach the server")])
def test_what_cannot_be_sent_is_kept(
    alone: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    key: str | None,
    problem: str,
) -> None:
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert logged_online(tmp_path / "vis_data") == [1, 2]
    ours = [record for record in caplog.records if record.name.startswith("app.")]
    (warning,) = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert problem in warning
    assert "wandb sync" in warning


@pytest.mark.parametrize(
    ("backend", "package", "arguments", "remedy"),
    [
        (Wandb, "wandb", {"project": "p"}, "pip install wandb"),
        (TensorBoard, "torch.utils.tensorboard", {}, "pip install tensorboard"),
        (Mlflow, "mlflow.tracking", {}, "hydra-experiment-app[mlflow]"),
    ],
)
def test_an_absent_package_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, package: str, arguments: dict[str, str], remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"visualizer.{backend.__name__.lower()} needs a package") as caught:
        backend(tmp_path, "run", "digits", **arguments)
    assert remedy in str(caught.value)
