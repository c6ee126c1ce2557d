"""What ends a run on purpose: an exit code and one readable message."""

from __future__ import annotations

import errno
from pathlib import Path

CONFIG, DATA, CHECKPOINT, BUG, CANNOT_WRITE, IO, TEMPORARY = 64, 65, 66, 70, 73, 74, 75
"""Exit codes after sysexits.h: wrong config, wrong data or non-finite numbers, checkpoint unusable, a bug, cannot
write, I/O error, try again later."""


class RunError(Exception):
    """A message for a person: what is wrong, where, what was found, what would be right. No traceback is shown."""

    exit_code = BUG

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(RunError):
    """A key, a value or a combination of them is wrong."""

    exit_code = CONFIG


class DataError(RunError):
    """The data is missing, unreadable or does not fit, or numbers became non-finite."""

    exit_code = DATA


class CheckpointError(RunError):
    """A checkpoint cannot be read, is damaged, or belongs to something else."""

    exit_code = CHECKPOINT


class CannotWrite(RunError):  # noqa: N818 - a statement, like the exit code's own name
    """A folder or file cannot be written."""

    exit_code = CANNOT_WRITE


class TemporaryError(RunError):
    """Worth another try: a network or a server."""

    exit_code = TEMPORARY


def unwritable(error: BaseException, folder: str | None = None) -> RunError | None:
    """The error for a person when a file (below `folder`, unless the disk is full) cannot be written, else None."""
    if isinstance(error, ValueError) and error.__cause__ is not None:
        error = error.__cause__  # logging wraps what opening its file raised
    if not isinstance(error, OSError):
        return None
    path = error.filename2 or error.filename  # a rename's target says more than its temporary name
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"cannot write {path or folder or 'a file'}: {error.strerror}", IO)
    if folder is not None and not (isinstance(path, str) and Path(path).absolute().is_relative_to(folder)):
        return None
    return CannotWrite(f"cannot write {path}: {error.strerror}; choose another output_root, name or hydra.run.dir")
