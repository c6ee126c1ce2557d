"""Console and file logging."""

from __future__ import annotations

import errno
import logging
import os
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class ConsoleHandler(logging.StreamHandler[Any]):
    """Writes to standard output, above a live progress display, and plainly everywhere else."""

    console: Console | None = None
    """Set while a progress display is shown; lines must go through it, or they tear the display."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        if ConsoleHandler.console is None:
            super().emit(record)
            return
        try:
            ConsoleHandler.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            # Nobody reads any more (`| head`): the run goes on, and its log file has everything.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        else:
            super().handleError(record)


class ConsoleFormatter(logging.Formatter):
    """Plain lines, but `warning: …` and `error: …` from WARNING on: a console that is no terminal has no colours."""

    def format(self, record: logging.LogRecord) -> str:
        text, level = super().format(record), f"{record.levelname.lower()}: "
        plain = record.levelno < logging.WARNING or text.startswith(level)
        return text if plain else level + text


class LogFile(logging.FileHandler):
    """A log file whose disk may be full: said once, and the run goes on without it."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            print(f"cannot write {self.baseFilename}: {error.strerror}; what it lacks is here only", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # what could not be written is tried again
            super().close()


class ProgressDisplay:
    """A live line with the run's progress; nothing where there is no terminal."""

    def __init__(self, enabled: bool | str, total: int, unit: str) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        if enabled is True or (enabled == "auto" and sys.stdout.isatty()):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(file=sys.stdout)
            self.progress = Progress(
                TextColumn(unit),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
            )
            self.task = self.progress.add_task("", total=total)
            ConsoleHandler.console = console
            self.progress.start()

    def update(self, completed: int, text: str) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=completed, description=text)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            ConsoleHandler.console = None


def mute_lost_terminals() -> None:
    """Lets what is written to a terminal that was closed go nowhere, instead of ending the run with an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def quiet_other_ranks(rank: int) -> None:
    """Lets ranks above 0 speak from WARNING on, with their number."""
    if rank == 0:
        return
    handler = ConsoleHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(f"[%(asctime)s][rank {rank}][%(levelname)s] %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)
