"""A real sweep whose launcher is killed ten times ends as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

POINTS = ["optim.lr=1e-3,3e-3,1e-2", "randomness.seed=range(4)", "train.max_epochs=8", "hooks.logger.interval=1"]
KILLS = 10


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "app", "--multirun", *POINTS, "hydra.sweep.dir=sweep", *arguments],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def steps_done(folder: Path) -> list[str]:
    """Every step that any process has done, repetitions included."""
    logs = sorted(folder.glob("sweep/*/stdout.log"))
    lines = [(log.parent.name, line) for log in logs for line in log.read_text().splitlines()]
    return [f"{name} {match[0]}" for name, line in lines if (match := re.match(r"epoch \d+/\d+ iter \d+/\d+", line))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for point in sorted((folder / "sweep").glob("lr-*")):
        newest = max((point / "checkpoints").glob("epoch_*.pth"), key=lambda path: int(path.stem.split("_")[1]))
        state = torch.load(newest, weights_only=True)["model"]
        found |= {f"{point.name} {key}": value for key, value in state.items()}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    calm.mkdir()
    wild.mkdir()
    process = start(calm)
    output, _ = process.communicate()
    assert process.returncode == 0, output

    dice = random.Random(0)
    total = len(steps_done(calm))
    kills = 0
    while True:
        process = start(wild, "resume=true")
        goal = (kills + dice.random()) / KILLS * total
        while kills < KILLS and process.poll() is None and len(steps_done(wild)) < goal:
            time.sleep(0.05)
        if kills == KILLS or process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert kills == KILLS

    done = steps_done(wild)
    extra = len(done) - len(set(done))
    print(f"{kills} kills, {len(set(done))} steps of {total}, {extra} of them repeated")
    assert set(done) == set(steps_done(calm))
    assert extra <= 0.02 * total
    assert (wild / "sweep" / "results.csv").read_text() == (calm / "sweep" / "results.csv").read_text()
    ours, theirs = weights(wild), weights(calm)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
