"""What a person sees of a running sweep: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from app.launch.job import DONE_STATE, FAILED, INTERRUPTED, RUNNING, WAITING, Job
from app.launch.report import Reporter
from app.launch.results import last_scalars

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class Lines:
    """Tell what happens, a line per event, and keep the report. Nothing here may raise: jobs are running."""

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        self.jobs = jobs
        self.folder = folder
        self.reporter = Reporter(folder)

    def message(self, text: str) -> None:
        with suppress(OSError):  # nobody reads it any more, or its disk is full: the jobs go on
            print(text, flush=True)

    def started(self, job: Job, place: str) -> None:
        again = f" (launch {job.launches})" if job.launches > 1 else ""
        self.message(f"[{_clock()}] #{job.number} {job.name} started on {place}{again}")

    def ended(self, job: Job) -> None:
        self.message(f"[{_clock()}] {ending(job)}")
        self.reporter.refresh()

    def tick(self) -> None:
        """Called a few times a second."""
        self.reporter.refresh_if_due()

    def close(self) -> None:
        self.reporter.refresh(force=True)
        self.message(summary(self.jobs))
        for job in self.jobs:
            if job.state == FAILED:
                self.message(f"  failed: {ending(job)} (log: {job.folder / 'stdout.log'})")
        if any(job.state == INTERRUPTED for job in self.jobs):
            self.message("the same command with resume=true goes on")
        self.message(f"report: {self.folder / 'report.html'}")


class LiveTable(Lines):
    """The same, and a table of what runs below it."""

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(jobs, folder)
        self.console = Console(file=sys.stdout)
        self.running: dict[int, tuple[Job, str, float]] = {}
        self.drawn = 0.0
        self.live: Live = Live(console=self.console, auto_refresh=False, transient=True)
        self.live.start()

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, job: Job, place: str) -> None:
        self.running[job.number] = (job, place, time.monotonic())

    def ended(self, job: Job) -> None:
        del self.running[job.number]
        super().ended(job)

    def tick(self) -> None:
        super().tick()
        if time.monotonic() - self.drawn > 0.5:
            self.drawn = time.monotonic()
            self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        from rich.table import Table

        table = Table(title=summary(self.jobs), title_justify="left")
        for heading in ("#", "point", "place", "time", "progress"):
            table.add_column(heading, overflow="fold")
        rows = list(self.running.values())
        room = max(3, self.console.height - 8)
        for job, place, since in rows[:room]:
            seconds = time.monotonic() - since
            table.add_row(str(job.number), job.name, place, _duration(seconds), progress(job.folder))
        if len(rows) > room:
            table.add_row("", f"… and {len(rows) - room} more", "", "", "")
        return table

    def close(self) -> None:
        self.live.stop()
        super().close()


@contextmanager
def make_watcher(jobs: Sequence[Job], folder: Path) -> Iterator[Lines]:
    """The live table where standard output is a terminal, else lines; at the end the summary and the report."""
    watcher = LiveTable(jobs, folder) if sys.stdout.isatty() else Lines(jobs, folder)
    skipped = sum(job.skipped for job in jobs)
    watcher.message(f"sweep of {len(jobs)} jobs in {folder}" + (f", {skipped} done before" if skipped else ""))
    try:
        yield watcher
    finally:
        watcher.close()


def ending(job: Job) -> str:
    """One line on how a job ended."""
    took = f"in {_duration(job.seconds)}"
    if job.state == DONE_STATE:
        value = f", {job.value:.6g}" if isinstance(job.value, float) else ""
        return f"#{job.number} {job.name} done {took}{value}"
    word = "left" if job.state == INTERRUPTED else "FAILED"
    return f"#{job.number} {job.name} {word} {took}: {job.reason}: {job.error or 'no output'}"


def summary(jobs: Sequence[Job]) -> str:
    """`19 done, 5 failed`, without the states that no job is in."""
    states = [job.state for job in jobs]
    return "sweep: " + ", ".join(
        f"{states.count(state)} {state}"
        for state in (DONE_STATE, FAILED, INTERRUPTED, RUNNING, WAITING)
        if states.count(state)
    )


def progress(folder: Path) -> str:
    """The newest values that the job has written."""
    row = last_scalars(folder)
    shown = [f"{key} {row[key]:.4g}" for key in ("val/top1", "train/loss") if isinstance(row.get(key), float)]
    return ", ".join([f"step {row['step']}", *shown]) if "step" in row else ""


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
