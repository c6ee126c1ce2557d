"""What a broken tracker costs: training with one that raises and one whose every call hangs, against `local` alone."""

from __future__ import annotations

from functools import partial

from app.visualizer.fanout import STALL_SECONDS
from benchmarks.clock import train
from benchmarks.engine import CASES
from benchmarks.measure import Section, interleaved, ratio, spread

EPOCHS = 4
BROKEN = (
    "trusted_packages=[tests]",
    "+visualizer.gone._target_=tests.visualizer.faulty.Raising",
    "+visualizer.silent._target_=tests.visualizer.faulty.Sleeping",
)


def trackers(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 7
    case = CASES[1]
    section = Section(
        "Broken trackers",
        f"Training of {case.title} with the default hooks, {EPOCHS} epochs of {case.steps} iterations, one log line "
        "every 10: with `visualizer=[local]`, and beside it one tracker that raises at its first call and one whose "
        "calls sleep for a minute; microseconds an iteration from the first batch to the last save, without the "
        f"evaluations, the median of {rounds} interleaved rounds (least to greatest). Goal: <= 1.01.",
        ("time", "local", "with broken trackers", "ratio"),
    )
    for kind in ("CPU", "wall"):
        times = interleaved(
            {"local": partial(seconds, kind), "broken": partial(seconds, kind, *BROKEN)},
            rounds,
        )
        section.rows.append(
            [
                kind,
                spread(times["local"], 1e6, 0),
                spread(times["broken"], 1e6, 0),
                ratio(times["broken"], times["local"], 3),
            ]
        )
    section.notes.append(
        f"At the end of a run a tracker that does nothing for {STALL_SECONDS:g} s is given up: that wait, once a run, "
        "is not in the table."
    )
    return section


def seconds(kind: str, *overrides: str) -> float:
    """Of one iteration."""
    training = train(*CASES[1].overrides, f"train.max_epochs={EPOCHS}", *overrides)
    first, last = training.marks[0], training.marks[-1]
    if kind == "CPU":
        return (last.cpu_seconds - first.cpu_seconds) / training.steps
    return (last.wall_seconds - first.wall_seconds) / training.steps
