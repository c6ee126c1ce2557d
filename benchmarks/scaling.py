"""Training images a second of 1 and of 2 processes with one thread each: python -m benchmarks.scaling [--quick]"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.measure import Section, interleaved, ratio, spread

RECIPE = (
    "env.device=cpu", "data=fake", "data.size=2048", "data.val_size=10", "data.image_size=32", "data.batch_size=128",
    "model=small_cnn", "train.max_epochs=3", "train.val_interval=3", "hooks.checkpoint.interval=-1",
    "hooks.logger.interval=1", "logging.window_size=1", "logging.progress=false", "randomness.seed=1",
)  # fmt: skip
WARM_UP_STEPS = 5


def images_per_second(processes: int) -> float:
    """Of one launch: the median over its steps, past the first ones."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "app", *RECIPE, f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        text = Path(folder, "run", "vis_data", "scalars.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    rates = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    return median(rates[WARM_UP_STEPS:])


def contender(processes: int) -> Callable[[], float]:
    return lambda: images_per_second(processes)


def scaling(quick: bool) -> Section:
    """The section of the report."""
    rounds = 2 if quick else 5
    rates = interleaved({"1": contender(1), "2": contender(2)}, rounds)
    cores = len(os.sched_getaffinity(0))
    return Section(
        "Scaling",
        "Images a second by the wall clock of `torchrun` with 1 and 2 processes of one thread each, DDP over gloo, on "
        f"a machine with {cores} cores: SmallCNN on 3x32x32 images, 128 a step over all processes together; "
        f"each launch's median step, and of those the median of {rounds} interleaved rounds (least to greatest).",
        ("processes", "images/s", "against one"),
        [[name, spread(rates[name], digits=0), ratio(rates[name], rates["1"])] for name in rates],
        ["Both processes need a core to themselves; on a busy machine the ratio is that of the cores left."],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(scaling(parser.parse_args().quick).markdown())
