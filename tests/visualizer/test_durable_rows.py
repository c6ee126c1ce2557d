"""Rows reach the disk before the checkpoint of their step, and no damaged record ends a page, a report or a resume."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import RunApp

from app.launch.report import main as report
from app.visualizer.local import Local
from app.visualizer.run_page import page

SMALL = ("data.limit_train=64", "data.limit_val=16", "data.batch_size=16", "model.width=4", "randomness.seed=1")
PICTURES = ("+hooks=visualization", "hooks.visualization.enable=true", "hooks.visualization.max_images=2")


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_rows_are_on_disk_before_the_manifest_of_their_step(
    run_app: RunApp, monkeypatch: pytest.MonkeyPatch, asynchronous: str
) -> None:
    """Both real functions are called; what is noted is how long the file was whenever it was flushed to the disk."""
    flushed: dict[str, int] = {}
    manifests: dict[int, dict[str, int]] = {}
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(file: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{file}")).name
        size = os.fstat(file).st_size
        fsync(file)
        flushed[name] = size

    def noting_replace(self: Path, target: Path) -> Path:
        if Path(target).parent.name == "checkpoints" and Path(target).suffix == ".json":
            manifests[json.loads(self.read_bytes())["step"]] = dict(flushed)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    folder = run_app(
        "run", *SMALL, "train.max_epochs=3", "hooks.logger.interval=1", f"hooks.checkpoint.async_save={asynchronous}"
    )
    assert sorted(manifests) == [4, 8, 12]
    for name in ("scalars.jsonl", "tables.jsonl"):
        lines = (folder / "vis_data" / name).read_bytes().splitlines(keepends=True)
        for step, at_disk in manifests.items():
            until = sum(len(line) for line in lines if json.loads(line)["step"] <= step)
            assert at_disk.get(name, 0) >= until > 0, f"{name} at step {step}"


def empty(file: Path) -> None:
    file.write_bytes(b"")


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def zeros(file: Path) -> None:
    """As XFS and ext4 leave what was not written back in time."""
    file.write_bytes(bytes(file.stat().st_size))


def foreign(file: Path) -> None:
    file.write_bytes(b'[{"step": "x", "rows": 3}, "\xff"]\n{"step": 1, "files": 3, "epoch": null, "rows": [1]}\n')


DAMAGES = [empty, torn, zeros, foreign]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """Every small file of a finished run in a sweep's folder."""
    from app import cli

    sweep = tmp_path_factory.mktemp("sweep")
    folder = sweep / "seed-1"
    settings = ("train.max_epochs=2", f"hydra.run.dir={folder}", f"output_root={sweep}")
    assert cli.main([*SMALL, *PICTURES, *settings]) == 0
    job = {"axes": {"randomness.seed": 1}, "overrides": ["randomness.seed=1"], "state": "done", "length": 2}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / ".result.json").write_text(json.dumps({"value": 0.5}))
    (sweep / "sweep.json").write_text(json.dumps({"keys": [], "command": ["python", "-m", "app"]}))
    return {
        file.relative_to(sweep): file.read_bytes()
        for file in sweep.rglob("*")
        if file.is_file() and not file.is_symlink() and "checkpoints" not in file.parts and file.name != ".lock"
    }


def restored(contents: dict[Path, bytes], folder: Path) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_no_damaged_file_ends_a_page_a_report_or_a_rewind(
    finished: dict[Path, bytes], tmp_path: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"scalars.jsonl", "tables.jsonl", "images.jsonl", "config.yaml", "DONE.json", "job.json"} <= {
        file.name for file in finished
    }
    titles = {"run": "seed-1", "experiment": "digits", "group": "sweep"}
    for number, name in enumerate(finished):
        sweep = restored(finished, tmp_path / f"{number}")
        damage(sweep / name)
        vis_data = sweep / "seed-1" / "vis_data"
        assert "<title>" in page(vis_data, titles, running=False, summary={})
        assert report([str(sweep)]) == 0, name
        again = Local(vis_data, "seed-1", "digits")
        again.rewind(4)
        again.scalars({"train/loss": 1.0}, 5, 1)
        again.close({})
        last = (vis_data / "scalars.jsonl").read_bytes().splitlines()[-1]
        assert json.loads(last)["train/loss"] == 1.0, name


def test_what_cannot_be_read_is_one_warning(
    finished: dict[Path, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = restored(finished, tmp_path)
    for name in ("vis_data/scalars.jsonl", "DONE.json"):
        empty(sweep / "seed-1" / name)
    for _ in range(3):
        assert report([str(sweep)]) == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(line.split(" (")[0].rsplit("/", 1)[1] for line in warnings) == ["DONE.json", "scalars.jsonl"]
