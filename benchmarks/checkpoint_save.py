"""How long a save of 1.2 GB blocks the loop, against torch.save; peak memory; and how long a load takes.

    python benchmarks/checkpoint_save.py [--parameters 100_000_000] [--rounds 5] [--folder /path]

100 million parameters with AdamW's two moments. The rounds are interleaved; a pause lets the background write end, so
that each kind is timed alone. Peak memory is of a process that does nothing else, over that of its state.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app import torch_file
from app.saver import Saver
from app.store import Save, Store

GIB = 1 << 30


def make_state(parameters: int) -> dict[str, Any]:
    """A model of layers of a million parameters, and AdamW's state of it."""
    layers = max(parameters // 1_000_000, 1)

    def tensors() -> dict[str, torch.Tensor]:
        return {f"layer{index}.weight": torch.rand(1000, 1000) for index in range(layers)}

    model, first, second = tensors(), tensors(), tensors()
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": first[name], "exp_avg_sq": second[name]}
        for index, name in enumerate(model)
    }
    return {"format": 1, "kind": "full", "progress": {}, "model": model, "optimizer": {"state": moments}}


class Background:
    """The application's saves, written in the background."""

    def __init__(self, folder: Path, in_background: bool = True) -> None:
        self.store = Store(folder, keep=1)
        self.store.open()
        self.saver = Saver(in_background)
        self.step = 0

    def save(self, state: dict[str, Any]) -> None:
        """What the loop waits for."""
        self.step += 1
        entry = Save(f"iter_{self.step}", self.step, 0, 0, "full", periodic=True)
        self.saver.submit(state, lambda copy: self.store.save(copy, entry))

    def settle(self) -> float:
        """Seconds until the write is complete."""
        began = time.perf_counter()
        self.saver.drain()
        return time.perf_counter() - began


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(parameters: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each kind, round by round."""
    state = make_state(parameters)
    background, direct = Background(folder / "async"), Background(folder / "sync", in_background=False)
    seconds: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    for _ in range(rounds):
        note("torch.save", timed(lambda: torch.save(state, folder / "plain.pth")))
        note("async_save=false", timed(lambda: direct.save(state)))
        direct.settle()
        first = "first" if background.step == 0 else "later"
        note(f"async_save=true, {first}", timed(lambda: background.save(state)))
        note("... until durable", background.settle())
        newest = folder / "async" / f"iter_{background.step}.pth"
        note("torch.load", timed(lambda: torch.load(folder / "plain.pth", weights_only=True)))
        note("load (mapped)", timed(lambda: torch_file.load(newest)))  # noqa: B023
    background.saver.close()
    return seconds


def peak_bytes(kind: str, parameters: int, folder: Path) -> int:
    """Peak resident bytes of a process of its own that saves three times, over those before the first."""
    command = [sys.executable, __file__, "--peak", kind, "--parameters", str(parameters), "--folder", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, parameters: int, folder: Path) -> None:
    state = make_state(parameters)
    before = peak_resident_bytes()
    saves = Background(folder / f"peak_{kind}", in_background=kind == "async")
    for _ in range(3):
        if kind == "torch":
            torch.save(state, folder / "peak.pth")
        else:
            saves.save(state)
            saves.settle()
    saves.saver.close()
    print(peak_resident_bytes() - before)


def peak_resident_bytes() -> int:
    """Linux's VmHWM; ru_maxrss would count what the parent had before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; a disk, not memory, for numbers that mean something")
    parser.add_argument("--peak", choices=("torch", "sync", "async"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, options.parameters, Path(options.folder))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        seconds = measure(options.parameters, options.rounds, folder)
        base = statistics.median(seconds["torch.save"])
        print(f"state of {options.parameters * 12 / 1e9:.2f} GB; {torch.get_num_threads()} threads\n")
        print("| | seconds, median | least | greatest | x torch.save | least x least |\n|---|---|---|---|---|---|")
        for kind, values in seconds.items():
            middle, ratio = statistics.median(values), min(values) / min(seconds["torch.save"])
            row = (
                f"| {kind} | {middle:.3f} | {min(values):.3f} | {max(values):.3f} | {middle / base:.2f} | {ratio:.2f} |"
            )
            print(row)
        print("\n| save | peak memory over the state, GiB | copies of the state |\n|---|---|---|")
        for kind in ("torch", "sync", "async"):
            extra = peak_bytes(kind, options.parameters, folder)
            print(f"| {kind} | {extra / GIB:.2f} | {extra / (options.parameters * 12):.2f} |")


if __name__ == "__main__":
    main()
