"""Lines of numbers: to the console, the log file and the visualizer."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch

from app.config.schema.hooks import LoggerConf
from app.core.clock import times_left
from app.core.hook import Hook
from app.core.nonfinite import REMEDY, StepRecord, describe
from app.core.state import Run, StepInfo
from app.errors import DataError
from app.log import ProgressDisplay
from app.visualizer.evaluation import report_evaluation

logger = logging.getLogger(__name__)

SOURCES = ("loss", "top1", "grad_norm", "lr", "time", "data_time")


class Window:
    """A running `method` over the last `window` values of `source`, over the epoch's, or over all."""

    def __init__(self, source: str, method: str, window: int | str, name: str) -> None:
        self.source, self.method, self.window, self.name = source, method, window, name
        self.values: deque[float | None] = deque(maxlen=window if isinstance(window, int) else 0)
        self.reset()

    def reset(self) -> None:
        """Forgets an epoch's values."""
        self.count, self.total, self.least, self.greatest, self.last = 0, 0.0, float("inf"), float("-inf"), float("nan")

    def add(self, value: float | None) -> None:
        """Takes one step's value; None where the step has none, such as the accuracy on mixed targets."""
        self.last = float("nan") if value is None else value
        if isinstance(self.window, int):
            self.values.append(value)
        elif value is not None:
            self.count += 1
            self.total += value
            self.least, self.greatest = min(self.least, value), max(self.greatest, value)

    def result(self) -> float:
        """NaN where the window holds no value."""
        if self.method == "last":
            return self.last
        if isinstance(self.window, int):
            values = [value for value in self.values if value is not None]
            count, total = len(values), sum(values)
            least, greatest = min(values, default=float("nan")), max(values, default=float("nan"))
        else:
            count, total, least, greatest = self.count, self.total, self.least, self.greatest
        if not count:
            return float("nan")
        return {"mean": total / count, "min": least, "max": greatest}[self.method]

    def state_dict(self) -> dict[str, Any]:
        numbers = [self.count, self.total, self.least, self.greatest, self.last]
        return {"values": list(self.values), "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values.clear()
        self.values.extend(state["values"])
        self.count, self.total, self.least, self.greatest, self.last = state["numbers"]


def make_windows(window_size: int, custom: Sequence[Mapping[str, Any]]) -> list[Window]:
    """The smoothing rules: the mean over `window_size`, and lr as it is; a custom rule without a name replaces one."""
    windows = {source: Window(source, "last" if source == "lr" else "mean", window_size, source) for source in SOURCES}
    for rule in custom:
        name = rule.get("name") or rule["source"]
        windows[name] = Window(rule["source"], rule.get("method", "mean"), rule.get("window", window_size), name)
    return list(windows.values())


class Logger(LoggerConf, Hook):
    """Keeps each step's numbers on the device and reads them all at once every `interval` iterations."""

    def __post_init__(self) -> None:
        self.pending: list[StepInfo] = []
        self.display = ProgressDisplay(False, 0, "")

    def attach(self, run: Run) -> None:
        settings = run.config["logging"]
        self.run = run
        self.windows = make_windows(settings["window_size"], settings["custom"])
        self.pace: deque[tuple[int, float]] = deque(maxlen=settings["window_size"])
        """Images and seconds of the newest steps."""
        self.digits = settings["num_digits"]
        total = run.length if run.by_epoch else run.total_steps
        enabled = settings["progress"] if run.world.is_main else False
        self.display = ProgressDisplay(enabled, total, "epochs" if run.by_epoch else "iterations")

    def epoch_start(self, run: Run) -> None:
        if run.state.progress.batch == 0:
            for window in self.windows:
                if window.window == "epoch":
                    window.reset()

    def step_end(self, run: Run, step: StepInfo) -> None:
        self.pending.append(step)
        progress = run.state.progress
        done = progress.batch if run.by_epoch else progress.step
        last_of_epoch = progress.batch == run.data.steps_per_epoch
        last_of_run = run.position == run.total_steps
        short_epoch = self.interval > run.data.steps_per_epoch
        if done % self.interval == 0 or last_of_run or (short_epoch and last_of_epoch):
            self.read()
            self.write(run, step)

    def read(self) -> None:
        """Moves the pending steps' numbers from the device into the windows: one transfer, and one sum over ranks."""
        if not self.pending:
            return
        steps, self.pending = self.pending, []
        columns = [torch.stack([step.loss for step in steps]).double()]
        hits = [correct(step) for step in steps]
        columns.append(torch.stack([hit if hit is not None else columns[0].new_tensor(float("nan")) for hit in hits]))
        before = perf_counter()
        device_values = self.run.world.sum(torch.stack(columns)).tolist()
        waited = (perf_counter() - before) / len(steps)  # for the device, which was still at work on these steps
        norms = [step.grad_norm for step in steps if step.grad_norm is not None]
        norm_values = iter(torch.stack(norms).tolist() if norms else [])
        records = []
        for loss, hit, step in zip(*device_values, steps, strict=True):
            values = {
                "loss": loss,
                "top1": None if hit != hit else hit / step.size,
                "grad_norm": None if step.grad_norm is None else next(norm_values),
                "lr": step.lr,
                "time": step.step_seconds + waited,
                "data_time": step.data_seconds,
            }
            self.pace.append((step.size, values["time"]))
            for window in self.windows:
                window.add(values[window.source])
            records.append(StepRecord(step.step, step.epoch, step.batch, step.lr, loss, values["grad_norm"]))
        if not any(hook.decides_on_nonfinite for hook in self.run.hooks.values()):
            self.refuse_nan(records)

    def refuse_nan(self, records: Sequence[StepRecord]) -> None:
        """Raise DataError for the first loss that is not finite: from there on nothing is learnt."""
        for record in records:
            if not math.isfinite(record.loss):
                raise DataError(f"{describe(self.run, record, 'loss')}; {REMEDY}")

    def before_save(self, run: Run) -> None:
        self.read()  # the windows are state

    def write(self, run: Run, step: StepInfo) -> None:
        """One line, and the same numbers to the visualizer."""
        progress = run.state.progress
        results = [(window, window.result()) for window in self.windows]
        values = {window.name: value for window, value in results if value == value or window.source == "loss"}
        sizes, durations = zip(*self.pace, strict=True)
        seconds = sum(durations) / len(durations)
        values["images_per_second"] = sum(sizes) / sum(durations)
        memory = memory_mib(run.world.device)
        if memory is not None:
            values["memory_mib"] = memory
        if not run.world.is_main:
            return
        names = {"loss": "loss", "top1": "top1", "grad_norm": "grad_norm", "lr": "lr"}
        parts = [f"{name} {self.number(values[name])}" for name in names if name in values]
        custom = [name for name in values if name not in SOURCES and name not in ("images_per_second", "memory_mib")]
        parts += [f"{name} {self.number(values[name])}" for name in custom]
        parts.append(f"time {values['time'] * 1000:.1f} ms (data {values['data_time'] * 1000:.1f})")
        parts.append(f"{values['images_per_second']:.0f} img/s")
        if memory is not None:
            parts.append(f"memory {memory:.0f} MiB")
        parts.append(f"eta {timedelta(seconds=int(self.remaining_seconds(run, seconds)))}")
        line = f"{where(run)}  " + "  ".join(parts)
        self.display.update(run.count, line)
        logger.info(line)
        run.visualizer.scalars(
            {f"train/{name}": value for name, value in values.items()}, step=progress.step, epoch=progress.epoch
        )

    def remaining_seconds(self, run: Run, step_seconds: float) -> float:
        """The steps still to do, and the evaluations among them, each as long as the last one."""
        train = run.config["train"]
        evaluations = times_left(run.count, run.length, train["val_interval"], train["val_begin"])
        return (run.total_steps - run.position) * step_seconds + evaluations * run.evaluation_seconds

    def number(self, value: float) -> str:
        """Fixed, or with an exponent where that would show nothing or too much."""
        fixed = value == 0 or 0.01 <= abs(value) < 1e6
        return f"{value:.{self.digits}f}" if fixed else f"{value:.{self.digits}g}"

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        if not run.world.is_main:
            return
        progress = run.state.progress
        text = "  ".join(f"{name} {self.number(value)}" for name, value in metrics.items())
        logger.info("%s  %s  (%.1f s)", where(run), text, run.evaluation_seconds)
        run.visualizer.scalars(metrics, step=progress.step, epoch=progress.epoch)
        report_evaluation(run)

    def finish(self, run: Run, error: BaseException | None) -> None:
        self.display.close()

    def state_dict(self) -> dict[str, Any]:
        return {"windows": {window.name: window.state_dict() for window in self.windows}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pending = []  # a rollback drops them
        for window in self.windows:
            if window.name in state["windows"]:
                window.load_state_dict(state["windows"][window.name])


def correct(step: StepInfo) -> torch.Tensor | None:
    """Correct predictions of this rank in one step, a float64 scalar on the device; None for soft targets."""
    total = None
    for logits, targets in zip(step.logits, step.targets, strict=True):
        if targets.ndim != 1:
            return None
        count = (logits.argmax(-1) == targets).sum(dtype=torch.float64)
        total = count if total is None else total + count
    return total


def where(run: Run) -> str:
    """`epoch 3/20 iter 10/23` or `iter 30/1000`, 1-based, of what was just done; `test` in a test."""
    progress = run.state.progress
    if run.phase == "test":
        return "test"
    if not run.by_epoch:
        return f"iter {progress.step}/{run.length}"
    if progress.batch == 0:
        return f"epoch {progress.epoch}/{run.length}"
    return f"epoch {progress.epoch + 1}/{run.length} iter {progress.batch}/{run.data.steps_per_epoch}"


def memory_mib(device: torch.device) -> float | None:
    """Peak device memory since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return peak
