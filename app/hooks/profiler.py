"""A torch.profiler trace of a few iterations."""

from __future__ import annotations

import logging

import torch

from app.config.schema.hooks import ProfilerConf
from app.core.hook import Hook
from app.core.state import Run, StepInfo

logger = logging.getLogger(__name__)


class Profiler(ProfilerConf, Hook):
    """Records `active` iterations after `wait` and `warmup`, `repeat` times, on the main rank.

    Each cycle writes `profile/main.<step>.pt.trace.json` into the run folder, which chrome://tracing, Perfetto and
    TensorBoard's profiler plugin open, and gives the most expensive operators to the visualizer as a table.
    """

    in_test = False

    def __post_init__(self) -> None:
        self.iterations = self.repeat * (self.wait + self.warmup + self.active)
        self.profile: torch.profiler.profile | None = None

    def epoch_start(self, run: Run) -> None:
        if self.profile is not None or self.iterations <= 0 or not run.world.is_main:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if run.world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(
                wait=self.wait, warmup=self.warmup, active=self.active, repeat=self.repeat
            ),
            on_trace_ready=lambda profile: write(run, profile),
            acc_events=True,
            record_shapes=self.record_shapes,
            profile_memory=self.profile_memory,
            with_stack=self.with_stack,
            with_flops=self.with_flops,
        )
        self.profile.start()

    def step_end(self, run: Run, step: StepInfo) -> None:
        if self.profile is None:
            return
        self.profile.step()
        self.iterations -= 1
        if self.iterations == 0:
            self._stop()

    def finish(self, run: Run, error: BaseException | None) -> None:
        if self.profile is not None:
            logger.warning("hooks.profiler: the run ended before the last cycle was recorded")
            self._stop()

    def _stop(self) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.profile = None


def write(run: Run, profile: torch.profiler.profile) -> None:
    """One cycle's trace and its table of operators."""
    step = run.state.progress.step
    folder = run.folder / "profile"
    folder.mkdir(exist_ok=True)
    path = folder / f"main.{step}.pt.trace.json"  # TensorBoard's plugin reads worker and span from this name
    profile.export_chrome_trace(str(path))
    # FLOPs are counted where an operator is called, not where its time is spent: these come first.
    found = profile.key_averages()
    events = sorted(found, key=lambda event: (bool(event.flops), event.self_cpu_time_total), reverse=True)[:30]
    columns = ["operator", "calls", "self_cpu_ms", "self_device_ms"]
    rows = [
        [event.key, event.count, event.self_cpu_time_total / 1000, event.self_device_time_total / 1000]
        for event in events
    ]
    if profile.with_flops:
        columns.append("gflops")
        rows = [[*row, event.flops / 1e9] for row, event in zip(rows, events, strict=True)]
    run.visualizer.table("profile/operators", columns, rows, step)
    logger.info("step %d: wrote the profile %s", step, path)
