"""Sweep folders: which one is continued, and which folder a point has in it."""

import json
from pathlib import Path

from app.launch.sweep import SWEEP, assign_folders, choose


def make(root: Path, stamp: str, *keys: str) -> Path:
    folder = root / f"sweep_{stamp}"
    folder.mkdir(parents=True)
    (folder / SWEEP).write_text(json.dumps({"keys": keys}))
    return folder


def test_resume_takes_the_newest_sweep_over_the_same_keys(tmp_path: Path) -> None:
    same = make(tmp_path, "2026-01-02", "optim.lr", "randomness.seed")
    related = make(tmp_path, "2026-01-03", "optim.lr")
    make(tmp_path, "2026-01-04", "model")
    assert choose(tmp_path, ["optim.lr", "randomness.seed"], True) == same
    assert choose(tmp_path, ["optim.lr", "data.batch_size"], True) == related
    assert not choose(tmp_path, ["optim.weight_decay"], True).exists()
    assert not choose(tmp_path, ["optim.lr", "randomness.seed"], False).exists()


def test_a_point_keeps_its_folder_whatever_else_is_swept(tmp_path: Path) -> None:
    (old,) = assign_folders(tmp_path, [({"optim.lr": 0.1, "randomness.seed": 0}, "lr 0.1, seed 0")])
    old.mkdir()
    (old / "job.json").write_text(json.dumps({"identity": "lr 0.1, seed 0"}))
    again, new = assign_folders(tmp_path, [({"randomness.seed": 0}, "lr 0.1, seed 0"), ({"randomness.seed": 1}, "b")])
    assert again == old
    assert new.name == "seed-1"


def test_different_points_never_share_a_folder(tmp_path: Path) -> None:
    first, second = assign_folders(tmp_path, [({"optim.lr": 1}, "optim.lr"), ({"model.lr": 1}, "model.lr")])
    assert first.name == "lr-1"
    assert second.name.startswith("lr-1__")
