"""Fetching a file over http(s): complete or nothing, never for ever, verified at every use.

torch.hub's downloader has no time-out, keeps cut-off files in its cache, and loads them with the unsafe unpickler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.checkpoint.manifest import hash_file
from app.checkpoint.transfer import Limits, Transfer, shown
from app.checkpoint.writer import save_error
from app.errors import CannotWrite, CheckpointError, ConfigError
from app.files import sync_folder, temporaries, write_temporary

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
POLL_SECONDS = 0.1

LIMITS = Limits()

logger = logging.getLogger(__name__)


def local_file(location: str, *, limits: Limits = LIMITS, interrupted: Callable[[], bool] = lambda: False) -> Path:
    """The file that `location` names: a path, or an http(s) address that is fetched into the cache.

    `#sha256=…` at the end is compared with what is there.

    Raises:
        CheckpointError: no such file, wrong hash, or a server that gives something else.
        TemporaryError: a server that cannot be reached or breaks off.
        ConfigError: another scheme, or a malformed hash.
        KeyboardInterrupt: `interrupted()` became true.
    """
    place, _, fragment = location.partition("#sha256=")
    expected = fragment.lower() or None
    if "#sha256=" in location and not re.fullmatch("[0-9a-f]{64}", expected or ""):
        raise ConfigError(f"{shown(place)}: #sha256= takes 64 hexadecimal digits, got {fragment!r}")
    scheme = urllib.parse.urlsplit(place).scheme.lower() if "://" in place else ""
    if scheme in ("http", "https"):
        if scheme == "http" and expected is None:
            logger.warning("%s is fetched without encryption; add #sha256=… to be sure of what you get", shown(place))
        return fetch(place, expected, limits=limits, interrupted=interrupted)
    if scheme:
        raise ConfigError(
            f"{shown(place)}: only paths, http:// and https:// addresses can be loaded from, not {scheme}:"
        )
    path = Path(place).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, or is not a file (looked for it in {Path.cwd()})")
    if expected is not None and (found := hash_file(path)) != expected:
        raise CheckpointError(f"{path} has sha256 {found}, not {expected}")
    return path


def fetch(
    url: str,
    sha256: str | None = None,
    *,
    limits: Limits = LIMITS,
    interrupted: Callable[[], bool] = lambda: False,
) -> Path:
    """The cached copy of `url`, verified; fetched when there is none. One process of a machine fetches, others wait."""
    url = urllib.parse.urldefrag(url).url
    suffix = Path(urllib.parse.urlsplit(url).path).suffix.lower()
    name = hashlib.sha256(url.encode()).hexdigest()[:40] + (suffix if suffix in SUFFIXES else ".pth")
    path = cache_folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, interrupted):
            record = _intact(path)
            if record is None or sha256 not in (None, record):
                record = _in_thread(lambda: _get(url, path, sha256, limits), path, interrupted)
    except PermissionError as error:
        raise CannotWrite(f"cannot write to the cache {path.parent}: {error.strerror}; set XDG_CACHE_HOME") from error
    logger.info("%s is %s, sha256 %s", shown(url), path, record)
    return path


def cache_folder() -> Path:
    """Below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydra-experiment-app" / "weights"


@contextmanager
def _alone(path: Path, interrupted: Callable[[], bool]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            if interrupted():
                raise KeyboardInterrupt from None
    try:
        yield
    finally:
        lock.release()


def _intact(path: Path) -> str | None:
    """The hash of the cached file if it is what was fetched."""
    record = path.with_name(path.name + ".json")
    try:
        expected = str(json.loads(record.read_text())["sha256"])
        if hash_file(path) == expected:
            return expected
        logger.warning("%s in the cache is damaged; fetching it again", path)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _in_thread(work: Callable[[], str], path: Path, interrupted: Callable[[], bool]) -> str:
    """Runs `work` where a blocking socket cannot keep this thread from its signals."""
    result: list[str] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            result.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=target, name="download", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if interrupted():
                raise KeyboardInterrupt
    except BaseException:
        for temporary, name in temporaries(path.parent):
            if name == path.name:
                temporary.unlink(missing_ok=True)
        raise
    if errors:
        raise errors[0]
    return result[0]


def _get(url: str, path: Path, sha256: str | None, limits: Limits) -> str:
    """Fetches into `path` and records its hash beside it, which is returned."""
    record = path.with_name(path.name + ".json")
    for temporary, name in temporaries(path.parent):
        if name in (path.name, record.name):
            temporary.unlink(missing_ok=True)
    transfer = Transfer(url, limits)
    try:
        temporary, digest = write_temporary(path, transfer.receive_all)
        try:
            if sha256 not in (None, digest.sha256):
                raise CheckpointError(f"{shown(url)} has sha256 {digest.sha256}, not {sha256}: not kept")
            text = json.dumps({"size": digest.size, "sha256": digest.sha256, "address": shown(url)}).encode()
            described, _ = write_temporary(record, text)
            temporary.replace(path)
            described.replace(record)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except PermissionError:
        raise
    except OSError as error:
        raise save_error(path, error, transfer.expected_bytes or 0) from None
    return digest.sha256
