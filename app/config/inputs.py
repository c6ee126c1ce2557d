"""Do the files that a configuration names exist? Asked before a run folder is made and before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.config.schema.data import FolderConf, TorchvisionDataConf
from app.errors import CheckpointError, DataError, RunError
from app.runs.folder import CHECKPOINTS

CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "CIFAR100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def require_inputs(config: Mapping[str, Any]) -> None:
    """Looks for the checkpoints and the data that a resolved, checked configuration names.

    Raises:
        CheckpointError, DataError: something is not there.
    """
    init = config["model"].get("init") or {}
    for key, location in (
        ("load_from", config["load_from"]),
        ("resume", config["resume"]),
        ("model.init.checkpoint", init.get("checkpoint")),
    ):
        if isinstance(location, str) and location not in ("auto", "true", "false") and "://" not in location:
            path = Path(location.partition("#sha256=")[0]).expanduser()
            if not path.is_file():
                what = _folder_text(key, path) if path.is_dir() else "does not exist"
                raise CheckpointError(f"{key}={location}: {path.absolute()} {what}")
    data = config["data"]
    problem = None
    if data["_target_"] == FolderConf._target_:
        problem = _folder_problem(data)
    elif data["_target_"] == TorchvisionDataConf._target_ and not data["download"]:
        problem = _download_problem(data["name"], Path(data["root"]))
    if problem is not None:
        raise problem


def _folder_text(key: str, path: Path) -> str:
    run = path.parent if path.name == CHECKPOINTS else path
    if not (run / CHECKPOINTS).is_dir():
        return "is a folder; name a file in it"
    if key == "resume":
        return f"is a folder; to continue that run: resume=true hydra.run.dir={run}"
    return f"is a folder; name a file in it, such as {run}/{CHECKPOINTS}/best.pth"


def _folder_problem(data: Mapping[str, Any]) -> RunError | None:
    root = Path(data["root"])
    expected = "expected train/CLASS/*.jpg and val/CLASS/*.jpg (or test/), a .tar of them, or CLASS/*.jpg with "
    expected += "data.val_fraction=0.2"
    if not root.exists():
        return DataError(f"data.root={data['root']}: {root.absolute()} does not exist; {expected}")
    if root.is_file():
        return None
    folders = sorted(child.name for child in root.iterdir() if child.is_dir())
    if not folders and data["train_list"] is None:
        return DataError(f"data.root={data['root']}: {root.absolute()} holds no folders; {expected}")
    if data["train_list"] is None and data["val_fraction"] is None and "train" not in folders:
        found = ", ".join(folders[:5])
        return DataError(f"data.root={data['root']}: there is no train/ in {root.absolute()} ({found}); {expected}")
    return None


def _download_problem(name: str, root: Path) -> RunError | None:
    places = CIFAR.get(name, (f"{name}/raw",))
    if any((root / place).exists() for place in places):
        return None
    return DataError(
        f"data.root={root}: there is no {' or '.join(places)} in {root.absolute()}; "
        f"point data.root at the folder that holds it, or fetch it with data.download=true"
    )
