"""From the start of the process to the first finished training step, against `import torch` alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Section, interleaved, ratio, spread

ROOT = Path(__file__).parents[1]
LEAVE = "; import os; os._exit(0)"
"""Without taking everything down again: nobody does at the first step."""
STAGES = """
import gc, json, sys
from time import process_time
gc.disable()
marks = [process_time()]
import app.cli, app.config.check, app.config.inputs
marks.append(process_time())
import torch
marks.append(process_time())
import app.job, app.hooks.checkpoint, app.hooks.logger, app.visualizer.local
marks.append(process_time())
import app.job as run
build = run.build_run
def timed(*args, **kwargs):
    marks.append(process_time())
    return build(*args, **kwargs)
run.build_run = timed
import os
leave = os._exit
os._exit = lambda code: (print(json.dumps(marks), flush=True), leave(code))
app.cli.main(sys.argv[1:])
"""


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """User and system time of one command and its children, and what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def until_first_step(folder: str, program: list[str], *overrides: str) -> tuple[float, str]:
    """CPU seconds of the default experiment until its first training step is done, and its output."""
    hook = "+hooks.first_step={_target_: benchmarks.clock.FirstStep, priority: 0}"
    return cpu_seconds([sys.executable, *program, f"output_root={folder}", hook, *overrides])


def start(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 7
    section = Section(
        "Start",
        "CPU seconds from the start of the process to the end of the first training step of the default experiment "
        "(`python -m app`, left at once then, without taking torch down again), the median of "
        f"{rounds} interleaved rounds (least to greatest), files warm. "
        "Goal: <= 1.25 times `import torch`.",
        ("command", "CPU s", "/ import torch"),
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c 'import torch'": lambda: cpu_seconds([sys.executable, "-c", "import torch"])[0],
            "the same, left at once": lambda: cpu_seconds([sys.executable, "-c", f"import torch{LEAVE}"])[0],
            "python -m app, to the first step": lambda: until_first_step(folder, ["-m", "app"])[0],
            "python -m app --help": lambda: cpu_seconds([sys.executable, "-m", "app", "--help"])[0],
            "python -c 'import torch, torchvision'": lambda: cpu_seconds(
                [sys.executable, "-c", f"import torch, torchvision{LEAVE}"]
            )[0],
        }
        times = interleaved(commands, rounds)
        reference = times["python -c 'import torch'"]
        section.rows += [
            [f"`{name}`", spread(values, digits=2), ratio(values, reference)] for name, values in times.items()
        ]
        section.notes.append(stages(folder, rounds))
        section.notes.append(loaded(folder))
    return section


def stages(folder: str, rounds: int) -> str:
    """Where the time goes, from the quickest of some runs."""
    titles = ("Python", "Hydra and the command line", "torch", "the rest of the program")
    found = []
    for _ in range(rounds):
        _, output = until_first_step(folder, ["-c", STAGES])
        lines = [line for line in output.splitlines() if line.startswith(("[0", "[1", "{"))]
        first, marks = json.loads(lines[-2]), json.loads(lines[-1])
        found.append((marks, first))
    marks, first = min(found, key=lambda item: item[1]["first_step"])
    steps = list(zip(titles, [b - a for a, b in zip([0.0, *marks[:3]], marks[:4], strict=True)], strict=True))
    steps += [
        ("composing, checking, the run folder, its record", marks[4] - marks[3]),
        ("data, model, optimizer, hooks", first["built"] - marks[4]),
        ("the first step", first["first_step"] - first["built"]),
    ]
    parts = "; ".join(f"{title} {seconds:.2f} s" for title, seconds in steps)
    return f"By stage, quickest of {rounds} runs ({first['first_step']:.2f} s): {parts}."


def loaded(folder: str) -> str:
    """Which heavy packages the default experiment has imported at its first step."""
    program = (
        "import os, sys, app.cli; leave = os._exit\n"
        "heavy = ('torchvision', 'torchmetrics', 'tensorboard', 'wandb', 'plotly', 'sklearn', 'scipy', 'sympy', "
        "'torch._dynamo', 'matplotlib', 'pandas')\n"
        "os._exit = lambda code: (print('HEAVY', [n for n in heavy if n in sys.modules], flush=True), leave(code))\n"
        "app.cli.main(sys.argv[1:])"
    )
    _, output = until_first_step(folder, ["-c", program])
    line = next(line for line in output.splitlines() if line.startswith("HEAVY"))
    return (
        f"Of torchvision, torchmetrics, tensorboard, wandb, plotly, sklearn, sympy, torch._dynamo imported: {line[6:]}."
    )
