"""Unpacks compressed archives, once, into the cache folder beside the run folders."""

import bz2
import gzip
import lzma
import os
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

from app.errors import CannotWrite, DataError

CACHE = Path("outputs") / ".cache"
OPENERS: dict[bytes, Any] = {b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}


def open_archive(path: Path) -> Path:
    """A plain tar that holds what `path` holds: itself, or for .tar.xz, .gz and .bz2 an unpacked copy in the cache.

    Raises:
        DataError: it is damaged.
        CannotWrite: the copy cannot be written.
    """
    with path.open("rb") as stream:
        start = stream.read(6)
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        return path
    status = path.stat()
    key = blake2b(f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    target = CACHE / f"{path.name.split('.')[0]}-{key}.tar"
    if target.exists():
        return target
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with opener(path, "rb") as packed, temporary.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        temporary.replace(target)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"data.root: {path.absolute()} is damaged: {error}") from error
    except OSError as error:
        raise CannotWrite(f"data.root: cannot unpack {path} into {target.parent.absolute()}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
