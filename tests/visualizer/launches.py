"""Four launches of one run with every tracker on; the first three are killed. `python launches.py VIS_DATA`.

Each launch is a fork, so that the packages are imported once.
"""

import os
import signal
import sys
import time
from pathlib import Path

import mlflow.tracking  # noqa: F401 - imported before the forks
import numpy as np
import wandb  # noqa: F401
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from app.visualizer.fanout import Fanout
from app.visualizer.local import Local
from app.visualizer.mlflow import Mlflow
from app.visualizer.tensorboard import TensorBoard
from app.visualizer.wandb import Wandb

LAUNCHES = ((0, 12, True), (14, 21, True), (16, 23, True), (20, 30, False))
"""Restored step, last step, killed."""
NOT_SENT = (13, 14)
"""Steps of the first launch that the kill keeps from W&B and MLflow, which are slow to start."""
STEPS_PER_EPOCH = 4


def launch(vis_data: Path, restored: int, last: int, killed: bool) -> None:
    names = {"folder": vis_data, "run_name": "run", "experiment": "digits", "group": "sweep"}
    backends = {
        "local": Local(**names),
        "tensorboard": TensorBoard(**names),
        "wandb": Wandb(**names, project="tests", mode="offline", tags=["a"]),
        "mlflow": Mlflow(**names, tags={"team": "vision"}),
    }
    visualizer = Fanout(backends, stall_seconds=120, close_seconds=240)
    visualizer.config({"optim": {"lr": 0.1 if restored < 20 else 0.2}, "root": "${oc.env:CANARY}"})
    visualizer.rewind(restored)
    picture = np.full((9, 9, 3), 50, dtype=np.uint8)
    for step in range(restored + 1, last + 1):
        epoch = step // STEPS_PER_EPOCH
        visualizer.scalars({"train/loss": 1 / step}, step, epoch)
        if step % STEPS_PER_EPOCH == 0:
            visualizer.scalars({"val/top1": step / 100}, step, epoch)
            visualizer.images("val/predictions", [picture, picture], ["a", "b"], step)
            visualizer.table("val/per_class", ["class", "f1"], [["cat", 0.5]], step)
            visualizer.flush()
    for step in NOT_SENT if restored == 0 else ():
        for member in visualizer.members:
            if member.name in ("local", "tensorboard"):
                member.call("scalars", ({"train/loss": 1 / step}, step, step // STEPS_PER_EPOCH), 0)
    if killed:
        visualizer.flush()
        deadline = time.monotonic() + 240
        while any(not one.calls.empty() or one.present for one in visualizer.threaded):
            assert time.monotonic() < deadline, "the backends do not get on"
            time.sleep(0.05)
        time.sleep(1.0)  # W&B writes its file from another process, ten times a second
        os.kill(os.getpid(), signal.SIGKILL)
    visualizer.close({"val/top1": 0.28})


def main(vis_data: Path) -> None:
    for restored, last, killed in LAUNCHES:
        child = os.fork()
        if child == 0:
            launch(vis_data, restored, last, killed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if killed else 0), status


if __name__ == "__main__":
    main(Path(sys.argv[1]))
