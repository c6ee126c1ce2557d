"""The file behind a location: a path, or an http(s) address, fetched complete or not at all, and never for ever.

torch.hub's downloader has no time-out, keeps cut-off files in its cache, and loads them with the unsafe unpickler.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from app.checkpoint import torch_file
from app.checkpoint.manifest import hash_file
from app.checkpoint.space import save_error
from app.checkpoint.transfer import Limits, Transfer, UnchangedError, shown
from app.errors import CannotWrite, CheckpointError, ConfigError, TemporaryError
from app.files import locked, read_json, temporaries, write_json, write_temporary

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
FRESH_SECONDS = 60.0
"""A copy that was asked for so lately is the server's: all processes of a run take the same file."""
HUB_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8})\.\w+$")
"""torch.hub's file names end in the first 8 digits of their SHA-256; others' end in a date."""

LIMITS = Limits()

logger = logging.getLogger(__name__)


def local_file(location: str, *, limits: Limits = LIMITS) -> Path:
    """Return the file that `location` names; an address is fetched into the cache.

    `#sha256=…` at the end is compared with what is there.

    Raises:
        CheckpointError: no such file, wrong hash, or a server that gives something else.
        TemporaryError: a server that cannot be reached or breaks off.
        ConfigError: another scheme, or a malformed hash.
    """
    address, marker, fragment = location.partition("#sha256=")
    expected = fragment.lower() or None
    if marker and not re.fullmatch("[0-9a-f]{64}", expected or ""):
        raise ConfigError(f"{shown(address)}: #sha256= takes 64 hexadecimal digits, got {fragment!r}")
    scheme = urlsplit(address).scheme.lower() if "://" in address else ""
    if scheme in ("http", "https"):
        if scheme == "http" and expected is None:
            logger.warning("%s is fetched without encryption; add #sha256=… to be sure of what you get", shown(address))
        return fetch(address, expected, limits=limits)
    if scheme:
        raise ConfigError(
            f"{shown(address)}: only paths, http:// and https:// addresses can be loaded from, not {scheme}:"
        )
    path = Path(address).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a file (looked for it in {Path.cwd()})")
    if expected is not None and (found := hash_file(path)) != expected:
        raise CheckpointError(f"{path} has sha256 {found}, not {expected}")
    return path


def fetch(url: str, sha256: str | None = None, *, limits: Limits = LIMITS) -> Path:
    """Return the cached copy of `url`, as the server has it now; one process of a machine fetches, others wait.

    A copy with the given hash needs no server. Any other is asked after, and used with a warning when nobody answers.
    """
    url = urldefrag(url).url
    suffix = Path(urlsplit(url).path).suffix.lower()
    path = cache_folder() / (hashlib.sha256(url.encode()).hexdigest()[:40] + (suffix if suffix in SUFFIXES else ".pth"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), patience_seconds=float("inf")):
            record = _intact(path)
            if record is None or record["sha256"] != sha256:
                record = _current(url, path, record if sha256 is None else None, sha256, limits)
    except PermissionError as error:
        raise CannotWrite(f"cannot write to the cache {path.parent}: {error.strerror}; set XDG_CACHE_HOME") from error
    logger.info("%s is %s, sha256 %s", shown(url), path, record["sha256"])
    return path


def cache_folder() -> Path:
    """Below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydra-experiment-app" / "weights"


def _intact(path: Path) -> dict[str, Any] | None:
    """The record of the cached file if it is what was fetched."""
    record = read_json(_record(path))
    if record is None or not {"sha256", "size", "etag", "last_modified"} <= record.keys():
        return None
    try:
        if hash_file(path) == record["sha256"]:
            return record
    except FileNotFoundError:
        return None
    logger.warning("%s in the cache is damaged; fetching it again", path)
    return None


def _current(url: str, path: Path, known: dict[str, Any] | None, sha256: str | None, limits: Limits) -> dict[str, Any]:
    """Fetch `url` unless the server still has the `known` copy; return the record of what lies in `path` then."""
    if known is not None and abs(time.time() - _record(path).stat().st_mtime) < FRESH_SECONDS:
        return known
    try:
        return _get(url, path, known, sha256, limits if known is None else replace(limits, attempts=1))
    except UnchangedError:
        assert known is not None
        os.utime(_record(path))
        return known
    except TemporaryError as error:
        if known is None:
            raise
        logger.warning("%s; using the copy that was fetched before", error)
        return known


def _get(url: str, path: Path, known: dict[str, Any] | None, sha256: str | None, limits: Limits) -> dict[str, Any]:
    """Fetch into `path`, and record beside it what it is; a file that is refused is not kept."""
    for leftover, name in temporaries(path.parent):
        if name in (path.name, _record(path).name):
            leftover.unlink(missing_ok=True)
    transfer = Transfer(url, limits, known)
    try:
        temporary, digest = write_temporary(path, transfer.receive_all)
        try:
            _verify(temporary, digest.sha256, sha256, url)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        validators = {"etag": transfer.etag, "last_modified": transfer.last_modified}
        record = {"size": digest.size, "sha256": digest.sha256, "address": shown(url), **validators}
        write_json(_record(path), record)  # syncs the folder too
    except PermissionError:
        raise
    except OSError as error:
        raise save_error(path, error, transfer.expected_bytes or 0) from None
    return record


def _verify(path: Path, found: str, sha256: str | None, url: str) -> None:
    """Raise CheckpointError for a wrong hash, or a file that would be refused at every later start."""
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{shown(url)} has sha256 {found}, not {sha256}: not kept")
    named = HUB_NAME.search(urlsplit(url).path)
    if sha256 is None and named is not None and not found.startswith(named[1]):
        raise CheckpointError(
            f"{shown(url)} has sha256 {found}, but its name says {named[1]}…: not kept; "
            "if the name means something else, add #sha256=…"
        )
    try:
        torch_file.read(path, urlsplit(url).path)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).replace(str(path), shown(url))}: not kept") from None


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
