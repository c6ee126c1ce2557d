"""The manifest of a checkpoint: `NAME.json` beside `NAME.pth`. A checkpoint exists if and only if it has one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from app.errors import IO, CheckpointError

FORMAT = 1
"""Version of manifest and file; a program reads its own and older ones."""
_verified: set[tuple[int, int, int, int, str]] = set()


class NotDamagedError(CheckpointError):
    """A file that cannot be used here, and with which nothing is known to be wrong: never passed over or set aside."""


class NewerFormatError(NotDamagedError):
    """Written by a newer program."""


class UnreadableError(NotDamagedError):
    """The system does not let a file be read (permission, a network file system): it may be intact."""

    exit_code = IO


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, without opening it."""

    name: str
    """File name; the file lies beside the manifest."""
    step: int
    epoch: int
    evaluated: int
    """The step of the last finished evaluation: less than `step` when one is still to be done."""
    kind: str = "full"
    """`full`, or `weights`: cannot be resumed from."""
    size: int = 0
    """In bytes."""
    sha256: str = ""
    periodic: bool = True
    """Counts for max_keep_ckpts."""
    best: str | None = None
    """The metric that this is the best checkpoint by."""
    config_sha256: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Of the last evaluation; null for a number that is not finite."""
    format: int = FORMAT

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".pth")

    @property
    def order(self) -> tuple[int, int, bool]:
        """Newer is greater: by step, never by the file's time."""
        return self.step, self.evaluated, self.periodic

    def text(self) -> str:
        """JSON, with a checksum of its own."""
        values = asdict(self) | {"metrics": {name: _finite(value) for name, value in self.metrics.items()}}
        return json.dumps(values | {"checksum": _checksum(values)}, indent=1, allow_nan=False)


def read(path: Path) -> Manifest:
    """The manifest at `path`.

    Raises:
        CheckpointError: damaged.
        UnreadableError: the system does not let it be read.
        NewerFormatError: written by a newer program.
    """
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        version = values["format"]
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: not a manifest ({type(error).__name__})") from error
    if isinstance(version, int) and version > FORMAT:
        raise NewerFormatError(f"{path} has format {version}, this program reads up to {FORMAT}: update it")
    names = {each.name for each in fields(Manifest)}
    if checksum != _checksum(values) or set(values) != names:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return Manifest(**values)


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError when the file of `manifest` is missing or differs from what was written, UnreadableError
    when nobody can tell.

    A file that this process has verified is not read again while its size and time stay the same.
    """
    path = folder / manifest.name
    try:
        status = path.stat()
        if status.st_size != manifest.size:
            raise CheckpointError(f"{path} is damaged: {status.st_size:,} bytes instead of {manifest.size:,}")
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, manifest.sha256
        if key not in _verified and hash_file(path) != manifest.sha256:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one it was written with")
        _verified.add(key)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to raise for a file that cannot be read: lost when the disk says so, else perhaps as good as ever."""
    text = f"{path} cannot be read: {error.strerror}"
    if error.errno in (errno.EIO, errno.ENOENT):
        return CheckpointError(text)
    return UnreadableError(f"{text}; it may be intact and is left as it is: mend that, or name another checkpoint")


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
