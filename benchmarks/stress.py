"""Kills a training run at random moments until it is done, and compares it with one that was never interrupted.

    python benchmarks/stress.py [--kills 100] [--signals KILL INT TERM] [--paths memory loader-0 loader-2] [--seed 0]

Dropout, batch norm, augmentation, AdamW, EMA, warm-up and cosine, accumulation 3, clipping, a checkpoint every third
step. Equal means: the same bits in weights, optimizer, EMA and hook state, and the same logged values. The processes
are forked from one that has imported torch, so that a hundred starts take minutes; each runs the whole command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app import cli
from app.checkpoint import contents
from app.checkpoint.recovery import newest_intact

COMMON = [
    "data.augment=[crop,rotate]",
    "data.limit_train=720",
    "model.dropout=0.2",
    "train.accumulate=3",
    "train.clip_norm=1",
    "schedule=cosine",
    "schedule.warmup=1",
    "hooks=[default,ema]",
    "hooks.ema.momentum=0.05",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=3",
    "hooks.checkpoint.max_keep_ckpts=2",
    "hooks.logger.interval=1",
    "logging.progress=false",
    "randomness.seed=5",
]
PATHS = {
    "memory": ["data.in_memory=true"],
    "loader-0": ["data.in_memory=false", "data.num_workers=0"],
    "loader-2": ["data.in_memory=false", "data.num_workers=2"],
}
CLOCKS = ("time", "seconds", "train/time", "train/data_time", "train/images_per_second", "train/memory_mib")
"""Keys of a logged row that say how long things took."""
MEASURED = re.compile(r"hooks/logger/windows/(time|data_time)/")
"""The same in the logger's state."""
PATIENCE_SECONDS = 300.0


@dataclass
class Process:
    """A run in a child process, and what it has said so far."""

    pid: int
    output: int
    text: str = ""

    def read_until(self, pattern: str, seconds: float) -> bool:
        """True when its output matches `pattern` within `seconds`; False when time or output ends first."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            ready, _, _ = select.select([self.output], [], [], max(end - time.monotonic(), 0))
            if not ready or not (piece := os.read(self.output, 1 << 16)):
                return bool(re.search(pattern, self.text))
            self.text += piece.decode(errors="replace")
        return True

    def send(self, number: int) -> None:
        """Sends a signal to it alone, if it still lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for the signal that killed it; its loader workers are killed after it."""
        ended, status = 0, 0
        end = time.monotonic() + PATIENCE_SECONDS
        while not ended:
            self.read_until("(?!)", 0.05)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            assert time.monotonic() < end, self.text
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.read_until("(?!)", 1.0)
        os.close(self.output)
        return os.waitstatus_to_exitcode(status)


def start(arguments: list[str], folder: Path) -> Process:
    """`python -m app ARGUMENTS` in `folder`, in a forked child with a group of its own."""
    output, given = os.pipe()
    pid = os.fork()
    if pid:
        os.close(given)
        return Process(pid, output)
    os.setsid()
    os.dup2(given, 1)
    os.dup2(given, 2)
    sys.argv = ["app", f"hydra.run.dir={folder}", *arguments]
    code: object = 70
    try:
        code = cli.entry()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)  # without exit handlers: they are the parent's


def state_digest(folder: Path) -> str:
    """A hash of the newest checkpoint's weights, optimizer, scaler, hooks and counters."""
    found = newest_intact(folder / "checkpoints")
    assert found is not None
    state = contents.load(folder / "checkpoints" / found.name)
    digest = hashlib.sha256()
    for key in ("model", "optimizer", "scaler", "schedule", "progress", "hooks", "seed"):
        for path, value in leaves(state[key], key):
            if MEASURED.match(path):
                continue
            data = value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
            digest.update(path.encode() + b"\0" + data)
    return digest.hexdigest()


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf."""
    if isinstance(tree, (Mapping, list, tuple)):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of scalars.jsonl without what depends on the machine's speed."""
    rows = [json.loads(line) for line in (folder / "vis_data" / "scalars.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


@dataclass
class Result:
    """What came out of one series of interrupted runs."""

    kills: int = 0
    in_save: int = 0
    """Kills that left a temporary file."""
    runs: int = 0
    repeated_steps: int = 0
    """Steps between where a run left on a signal and where it went on."""
    equal: bool = True


def uninterrupted(arguments: list[str], folder: Path) -> float:
    """Runs to the end; returns the seconds from the first step to the end."""
    process = start(arguments, folder)
    assert process.read_until("hooks: ", PATIENCE_SECONDS), process.text
    began = time.monotonic()
    code = process.wait()
    assert code == 0, process.text
    return time.monotonic() - began


def interrupted(
    arguments: list[str], folder: Path, number: int, seconds: float, least: int, chance: random.Random
) -> Result:
    """Sends signal `number` at a random moment, at most `seconds` after each start, `least` times; then lets it end."""
    result = Result(runs=1)
    stopped_at: int | None = None
    while True:
        process = start([*arguments, "resume=true"], folder)
        process.read_until("hooks: ", PATIENCE_SECONDS)
        if result.kills < least:
            time.sleep(chance.uniform(0, seconds))
            process.send(number)
        code = process.wait()
        restored = re.search(r"restored epoch \d+, step (\d+)", process.text)
        if stopped_at is not None and restored:
            result.repeated_steps += stopped_at - int(restored[1])
        if code == 0:
            return result
        assert code in (-number, 128 + number), process.text
        left = re.search(r"stopped at epoch \d+, step (\d+)", process.text)
        stopped_at = int(left[1]) if left else None
        result.kills += 1
        result.in_save += any((folder / "checkpoints").glob(".*.tmp"))


def series(path: str, number: int, kills: int, epochs: int, chance: random.Random, root: Path) -> Result:
    """As many interrupted runs as it takes for `kills`, each compared with the one that was never interrupted."""
    arguments = [*COMMON, *PATHS[path], f"train.max_epochs={epochs}"]
    straight = root / f"{path}_straight"
    if not straight.exists():
        uninterrupted(arguments, straight)
    expected, expected_rows = state_digest(straight), logged(straight)
    total = Result()
    while total.kills < kills:
        folder = root / f"{path}_{signal.Signals(number).name}_{total.runs}"
        seconds = chance.choice((0.15, 0.6, 1.5))
        one = interrupted(arguments, folder, number, seconds, kills - total.kills, chance)
        total.kills, total.in_save = total.kills + one.kills, total.in_save + one.in_save
        total.runs, total.repeated_steps = total.runs + 1, total.repeated_steps + one.repeated_steps
        total.equal &= state_digest(folder) == expected and logged(folder) == expected_rows
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="per path and signal")
    parser.add_argument("--signals", nargs="+", default=["KILL", "INT", "TERM"])
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", help="for the runs; in memory (/dev/shm) it is much faster than on a disk")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print("| data path | signal | kills | inside a save | runs | steps repeated | equal, bit for bit | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    good = True
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for path in options.paths:
            for each in options.signals:
                began = time.monotonic()
                number = signal.Signals[f"SIG{each}"]
                result = series(path, number, options.kills, options.epochs, chance, Path(name))
                repeated = "" if each == "KILL" else result.repeated_steps
                print(
                    f"| {path} | SIG{each} | {result.kills} | {result.in_save} | {result.runs} | {repeated} "
                    f"| {'yes' if result.equal else 'NO'} | {time.monotonic() - began:.0f} |",
                    flush=True,
                )
                good &= result.equal
    sys.exit(not good)


if __name__ == "__main__":
    main()
