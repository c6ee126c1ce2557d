"""Errors of saving: a full disk, found before anything is written where that can be known."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from app.errors import IO, RunError


class SaveError(RunError):
    """A file could not be written; what was there before is untouched."""

    exit_code = IO


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise ENOSPC before anything is written where it can be known."""
    if shutil.disk_usage(path.parent).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def save_error(path: Path, error: OSError, needed_bytes: int) -> SaveError:
    """The error for a person: path, cause, needed and free bytes."""
    text = f"cannot save {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            text += f" ({needed_bytes:,} bytes needed, {shutil.disk_usage(path.parent).free:,} bytes free)"
    return SaveError(text)
