"""How long a resumed run takes to its first new step, by how far into the epoch it goes on."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import Section, interleaved, ratio, spread
from benchmarks.start import cpu_seconds, until_first_step

STEPS = 1000
PLACES = {"1 %": 10, "50 %": 500, "99 %": 990}
RECIPE = (
    "data=fake", "data.size=64000", "data.val_size=64", "data.image_size=16", "data.channels=1", "data.batch_size=64",
    "data.augment=[crop,flip]", "model=mlp", "model.hidden=[16]", "train.max_epochs=1", "randomness.seed=3",
)  # fmt: skip
FEEDS = {"in memory": (), "read by 2 workers": ("data.in_memory=false", "data.num_workers=2")}


def resume(quick: bool) -> Section:
    """The section of the report."""
    import sys

    rounds = 3 if quick else 5
    section = Section(
        "Resume",
        f"CPU seconds of the whole process, workers included, until the first new step of an epoch of {STEPS} steps "
        f"is done; the median of {rounds} interleaved rounds (least to greatest). Goal: equal.",
        ("data", "at 1 %", "at 50 %", "at 99 %", "99 % / 1 %"),
    )
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        often = (
            "hooks.checkpoint.by_epoch=false",
            "hooks.checkpoint.interval=10",
            "hooks.checkpoint.max_keep_ckpts=-1",
        )
        cpu_seconds([sys.executable, "-m", "app", f"output_root={name}", f"hydra.run.dir={run}", *RECIPE, *often])
        for feed, overrides in FEEDS.items():

            def first_step(step: int, overrides: tuple[str, ...] = overrides) -> float:
                source = run / "checkpoints" / f"iter_{step}.pth"
                seconds, output = until_first_step(name, ["-m", "app"], f"resume={source}", *RECIPE, *overrides)
                done = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
                assert done["step"] == step + 1, done
                return seconds

            times = interleaved({place: partial(first_step, step) for place, step in PLACES.items()}, rounds)
            section.rows.append(
                [feed, *(spread(values, digits=2) for values in times.values()), ratio(times["99 %"], times["1 %"])]
            )
    return section
