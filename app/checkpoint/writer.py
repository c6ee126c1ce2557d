"""Writing a file so that a crash at any moment leaves either nothing under its name, or all of it.

Temporary name in the target folder, hashed while written, flush, fsync; the caller renames and syncs the folder. The
order follows "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from app.errors import IO as IO_CODE
from app.errors import RunError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
BUFFER_BYTES = 1 << 20

logger = logging.getLogger(__name__)
_folders_without_sync: set[int] = set()


class SaveError(RunError):
    """A file could not be written; what was there before is untouched."""

    exit_code = IO_CODE


class Digest(NamedTuple):
    """What was written, as it was given to the system."""

    size: int
    """In bytes."""
    sha256: str


class HashingFile(io.RawIOBase):
    """A binary file that hashes what passes through, and remembers its own error.

    torch replaces an OSError of the file it writes to by "unexpected pos …"; `error` keeps the true cause.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size = file, 0
        self.error: OSError | None = None
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self.error is not None:
            raise self.error
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        self.size += count
        return count

    def restart(self) -> None:
        """Forgets what was written."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self._hash = 0, hashlib.sha256()

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self._hash.hexdigest())


def write_temporary(path: Path, fill: Callable[[HashingFile], object]) -> tuple[Path, Digest]:
    """Writes what `fill` puts into the file under a temporary name beside `path`, down to the disk.

    Returns the temporary path, to be renamed, and what it holds. Nothing is left of it after an error.

    Raises:
        OSError: the true cause, also where `fill` hid it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering=BUFFER_BYTES) as file:
            hashing = HashingFile(file)
            try:
                fill(hashing)
            except Exception:
                if hashing.error is not None:
                    raise hashing.error from None
                raise
            if hashing.error is not None:
                raise hashing.error
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary, hashing.digest


def sync_folder(folder: Path) -> None:
    """Makes the renames in `folder` durable; a file system that cannot is named once and trusted."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
        device = os.fstat(descriptor).st_dev
        if device not in _folders_without_sync:
            _folders_without_sync.add(device)
            logger.warning("%s: this file system cannot sync a folder; a power cut may lose the newest file", folder)
    finally:
        os.close(descriptor)


def check_space(path: Path, needed_bytes: int) -> None:
    """Raises ENOSPC before anything is written where it can be known."""
    if shutil.disk_usage(path.parent).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def save_error(path: Path, error: OSError, needed_bytes: int) -> SaveError:
    """The error of a person: path, cause, needed and free bytes."""
    text = f"cannot save {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            text += f" ({needed_bytes:,} bytes needed, {shutil.disk_usage(path.parent).free:,} bytes free)"
    return SaveError(text)


def temporaries(folder: Path) -> list[tuple[Path, str]]:
    """Files that `write_temporary` left, each with the name it was meant for.

    Whoever holds the folder knows that their writers are gone. Whether a process of that number runs says nothing: it
    may be another one, or have been on another machine.
    """
    matches = ((path, TEMPORARY.fullmatch(path.name)) for path in folder.glob(".*.tmp"))
    return [(path, match["name"]) for path, match in matches if match]
