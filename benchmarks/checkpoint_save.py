"""How long a save of 1.2 GB blocks the loop, against torch.save; its memory; and how long a load takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.checkpoint import torch_file
from app.checkpoint.background import BackgroundWriter
from app.checkpoint.directory import CheckpointDir
from app.checkpoint.manifest import Manifest
from benchmarks.measure import Section, ratio, spread

PARAMETERS = 100_000_000
BYTES = 12 * PARAMETERS
"""Weights and the two moments of AdamW."""
PEAKS = {"torch": "torch.save", "sync": "async_save=false", "async": "async_save=true"}


def checkpoint_save(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 7
    section = Section(
        "Checkpoints",
        f"A state of {BYTES / 1e9:.1f} GB: {PARAMETERS // 1_000_000} million parameters with AdamW. Wall seconds that "
        f"the loop waits; the median of {rounds} interleaved rounds (least to greatest). torch.save neither hashes nor "
        "syncs. Memory: the peak of a process of its own that saves three times, beside the state. "
        "Goals: <= 1.1 x torch.save at first, <= 0.22 x later, one copy.",
        ("what", "seconds", "x torch.save, same round", "peak memory, copies of the state"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = measure(rounds, folder)
        copies = {label: f"{peak_bytes(kind, folder) / BYTES:.2f}" for kind, label in PEAKS.items()}
    base = seconds["torch.save"]
    for what, values in seconds.items():
        reference = base[: len(values)] if "first" in what else base[-len(values) :]
        memory = copies.get(what.partition(",")[0], "") if "later" in what or "," not in what else ""
        section.rows.append([what, spread(values), ratio(values, reference), memory])
    return section


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


class Saves:
    """The application's saves."""

    def __init__(self, folder: Path, in_background: bool = True) -> None:
        self.store = CheckpointDir(folder, keep=1)
        self.store.open()
        self.saver = BackgroundWriter(in_background)
        self.step = 0

    def save(self, state: dict[str, Any]) -> None:
        """What the loop waits for."""
        self.step += 1
        entry = Manifest(f"iter_{self.step}.pth", self.step, 0, 0, "full")
        self.saver.submit(state, lambda copy: self.store.save(copy, entry))

    def settle(self) -> None:
        """Waits until the write is complete."""
        self.saver.drain()


def measure(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each kind, round by round; a write in the background ends before the next kind begins."""
    state = make_state(PARAMETERS)
    background, direct = Saves(folder / "async"), Saves(folder / "sync", in_background=False)
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds):
        names = {
            "torch.save": lambda: torch.save(state, folder / "plain.pth"),
            "async_save=false": lambda: direct.save(state),
            f"async_save=true, {'later' if turn else 'first'}": lambda: background.save(state),
            "async_save=true, rest of the write": background.settle,
            "torch.load": lambda: torch.load(folder / "plain.pth", weights_only=True),
            "load, mapped": lambda: torch_file.load(folder / "async" / f"iter_{background.step}.pth"),
        }
        for name, work in names.items():
            seconds.setdefault(name, []).append(timed(work))
            direct.settle()
    background.saver.close()
    direct.saver.close()
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_bytes(kind: str, folder: Path) -> int:
    """Peak resident bytes of a process of its own that saves three times, over those before the first."""
    command = [sys.executable, "-m", "benchmarks.checkpoint_save", kind, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, folder: Path) -> None:
    """What `peak_bytes` reads."""
    state = make_state(PARAMETERS)
    before = peak_resident_bytes()
    saves = Saves(folder / f"peak_{kind}", in_background=kind == "async")
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


if __name__ == "__main__":
    print_peak(sys.argv[1], Path(sys.argv[2]))
