"""The power goes during a sweep: what the disk has by then is mounted again, and the same command finishes it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COMMAND = [
    sys.executable, "-m", "app", "--multirun", "optim.lr=1e-3,3e-3", "randomness.seed=1", "model=mlp",
    "train.max_epochs=3", "data.limit_train=200", "data.limit_val=50", "hydra.launcher.cpu_slots=1",
]  # fmt: skip


def succeeds(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True).returncode == 0


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_sweep_at_four_moments(tmp_path: Path) -> None:
    image, live = tmp_path / "image", tmp_path / "live"
    image.touch()
    os.truncate(image, 200 << 20)
    live.mkdir()
    if shutil.which("mkfs.ext4") is None or not succeeds("mkfs.ext4", image):
        pytest.skip("needs mkfs.ext4")
    if not succeeds("mount", "-o", "loop", image, live):
        pytest.skip("may not mount ext4")
    copies = []

    def cut() -> None:
        """What was not synced is not in the image file."""
        copies.append(tmp_path / f"copy{len(copies)}")
        assert succeeds("cp", "--sparse=always", image, copies[-1])

    try:
        process = start(live)
        for moment in ("*/checkpoints/*.json", "*/DONE.json"):
            while process.poll() is None and not list(live.glob(f"outputs/digits/sweep_*/{moment}")):
                time.sleep(0.02)
            cut()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        cut()
        time.sleep(3)
        cut()
    finally:
        assert succeeds("umount", live)

    after = tmp_path / "after"
    after.mkdir()
    for copy in copies:
        assert succeeds("mount", "-o", "loop", copy, after)
        try:
            empty = [str(path) for path in after.rglob("*") if path.is_file() and not path.stat().st_size]
            kept = len(list(after.glob("outputs/digits/*/*/checkpoints/*.json")))
            process = start(after, "resume=true")
            output, _ = process.communicate()
            print(f"{copy.name}: {kept} checkpoints, empty: {empty}\n{output}")
            assert process.returncode == 0, output
            assert "Traceback" not in output
            (sweep,) = after.glob("outputs/digits/sweep_*")
            assert all(path.stat().st_size for path in sweep.glob("*/DONE.json"))
            assert len(list(sweep.glob("*/DONE.json"))) == 2
            report = [sys.executable, "-m", "app.report", str(sweep)]
            assert subprocess.check_output(report, text=True).startswith("2 of 2 points done, 0 failed")
        finally:
            assert succeeds("umount", after)
