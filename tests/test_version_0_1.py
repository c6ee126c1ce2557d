"""A run folder that version 0.1 made: it is tested and resumed, with the values that it had then."""

import json
import shutil
from pathlib import Path

from invocation import Terminal

FIXTURE = Path(__file__).parent / "fixtures" / "run_0_1"
SAME = (
    "name=v01",
    "model=mlp",
    "model.hidden=[16]",
    "hooks=ema",
    "hooks.ema.momentum=0.05",
    "loss.label_smoothing=0.1",
)


def test_it_is_tested_and_resumed(terminal: Terminal) -> None:
    (made,) = FIXTURE.iterdir()
    run = terminal.folder / "outputs" / "v01" / made.name
    shutil.copytree(made, run, symlinks=True)
    tested = terminal.run(
        "name=v01", "model=mlp", "model.hidden=[16]", "mode=test", f"load_from={run}/checkpoints/best.pth"
    )
    best = json.loads((run / "DONE.json").read_text())
    assert tested.code == 0, tested.message
    tested.says(f"test/top1 {best['best']:.4f}")
    resumed = terminal.run(*SAME, "resume=true", "train.max_epochs=5")
    assert resumed.code == 0, resumed.message
    resumed.says("restored epoch 4, step 92")
    assert json.loads((run / "DONE.json").read_text())["step"] == 115
