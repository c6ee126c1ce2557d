"""Durable files and locks, for everything that outlives a process. Imports no torch.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the folder flushed: a
crash at any moment leaves the old content or the new. The order follows "All File Systems Are Not Created Equal"
(Pillai et al., OSDI 2014). What cannot be read back is one warning, and is treated as absent: a record must never stop
a run.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
BUFFER_BYTES = 1 << 20
POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)
_systems_without_sync: set[int] = set()


class Digest(NamedTuple):
    """Size in bytes and hash of what was written, as it was given to the system."""

    size: int
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
        """Forget what was written."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self._hash = 0, hashlib.sha256()

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self._hash.hexdigest())


def write_durable(path: Path, content: bytes | Callable[[HashingFile], object]) -> Digest:
    """Write `path` whole or not at all, down to the disk; `content` is bytes, or a function that fills a file.

    Raises:
        OSError: the true cause, also where the function hid it. The old content is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, digest = write_temporary(path, content)
    temporary.replace(path)
    sync_folder(path.parent)
    return digest


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whatever the locale; bytes that Python could not decode come out as they came in."""
    write_durable(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; what JSON does not know (a path) as its `str`."""
    write_durable(path, json.dumps(value, indent=1, default=str).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a record; None when there is none. A damaged or unreadable one is one warning, and None."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return warn_once(path, error.strerror or str(error))
    except (ValueError, RecursionError):
        return warn_once(path, "it is damaged: not JSON")
    return value if isinstance(value, dict) else warn_once(path, "it is damaged: not a JSON object")


@cache  # a report reads the same file every few seconds
def warn_once(path: Path, problem: str) -> None:
    """Say that a record, or a part of it, counts as absent."""
    logger.warning("cannot read %s (%s); treated as absent", path, problem)


def write_temporary(path: Path, content: bytes | Callable[[HashingFile], object]) -> tuple[Path, Digest]:
    """Write a file under a temporary name beside `path`, down to the disk, for the caller to rename.

    Returns the temporary path and what it holds. Nothing is left of it after an error.

    Raises:
        OSError: the true cause, also where `content` hid it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering=BUFFER_BYTES) as file:
            hashing = HashingFile(file)
            try:
                hashing.write(content) if isinstance(content, bytes) else content(hashing)
            except Exception:
                if hashing.error is not None:
                    raise hashing.error from None
                raise
            if hashing.error is not None:
                raise hashing.error
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write or flush does not know its file
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary, hashing.digest


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable; a file system that cannot is named once and trusted."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
        if (device := os.fstat(descriptor).st_dev) not in _systems_without_sync:
            _systems_without_sync.add(device)
            logger.warning("%s: this file system cannot sync a folder; a power cut may lose the newest file", folder)
    finally:
        os.close(descriptor)


def temporaries(folder: Path) -> list[tuple[Path, str]]:
    """Files that a crash of `write_temporary` left, each with the name it was meant for.

    Only whoever holds the folder knows that their writers are gone. Whether a process of that number runs says nothing:
    it may be another one, or have been on another machine.
    """
    matches = ((path, TEMPORARY.fullmatch(path.name)) for path in folder.glob(".*.tmp"))
    return [(path, match["name"]) for path, match in matches if match]


def remove_leftovers(folder: Path) -> None:
    """Delete what a crash left half written in `folder`; only for its holder."""
    for path, _ in temporaries(folder):
        with suppress(OSError):
            path.unlink()


def replace_link(link: Path, target: str) -> None:
    """Let the symbolic link `link` name `target`; it never points nowhere in between.

    Raises:
        OSError: the file system has no links, or the folder cannot be written.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


@contextmanager
def locked(path: Path, patience_seconds: float = 0.0) -> Iterator[int]:
    """Hold the lock file `path` against other processes, and write into it who does. A folder is its own lock file.

    Yields its descriptor. A child process that inherits it holds the lock too, until it ends.

    Raises:
        BlockingIOError: it stayed held for `patience_seconds`; `strerror` says by whom: `process 7 on host since …`.
        OSError: it cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience_seconds
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise BlockingIOError(errno.EWOULDBLOCK, _read_holder(descriptor), str(path))
            time.sleep(POLL_SECONDS)
        with suppress(OSError):  # on a full disk, or of a folder, the lock is as good without a name in it
            os.ftruncate(descriptor, 0)
            since = datetime.now().isoformat(timespec="seconds")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_holder(descriptor: int) -> str:
    with suppress(OSError):
        return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
    return "another process"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
