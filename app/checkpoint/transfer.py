"""One HTTP transfer: time-outs, retries that go on where the last broke off, redirects that stay on the web."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from app.checkpoint.space import check_space
from app.checkpoint.torch_file import HEAD_BYTES, impostor
from app.errors import CheckpointError, ConfigError, TemporaryError
from app.files import HashingFile

if TYPE_CHECKING:
    from requests import Response, Session

CHUNK_BYTES = 1 << 18
MAX_REDIRECTS = 5
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may do better next time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How long and how much."""

    connect_seconds: float = 10.0
    head_seconds: float = 10.0
    """Until the answer begins."""
    stall_seconds: float = 30.0
    """Without a byte of the file, or with less than `min_bytes`."""
    min_bytes: int = 1024
    attempts: int = 4
    backoff_seconds: float = 1.0
    """Before the second attempt; doubled each time."""
    max_bytes: int = 4 << 30


class BrokenError(Exception):
    """An attempt failed in a way that another may not."""


class UnchangedError(Exception):
    """The server still has the file that is known."""


def shown(url: str) -> str:
    """The address without what may be secret: user, password, query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Transfer:
    """One address into one file, over several attempts; each goes on where the last broke off, if the server can."""

    def __init__(self, url: str, limits: Limits, known: Mapping[str, Any] | None = None) -> None:
        """`known`: size, etag and last_modified of a copy that is not fetched again while the server has no other."""
        self.url, self.limits, self.known = url, limits, known
        self.expected_bytes: int | None = None
        self.etag: str | None = None
        self.last_modified: str | None = None

    def receive_all(self, file: HashingFile) -> None:
        """Fill `file`.

        Raises:
            UnchangedError: the known copy is still right.
            CheckpointError: the server has something else, or too much.
            TemporaryError: all attempts failed.
        """
        import requests
        from urllib3.exceptions import HTTPError

        # Its debug lines show queries, which may hold signatures.
        logging.getLogger("urllib3").setLevel(logging.INFO)
        with requests.Session() as session:
            for attempt in range(1, self.limits.attempts + 1):
                try:
                    return self._receive(session, file)
                except (requests.exceptions.InvalidURL, UnicodeError):
                    raise ConfigError(f"{shown(self.url)} is not a valid address") from None
                except (BrokenError, requests.RequestException, HTTPError) as error:
                    cause = _cause(error)
                if attempt < self.limits.attempts:
                    logger.warning("%s: %s; trying again", shown(self.url), cause)
                    time.sleep(self.limits.backoff_seconds * 2 ** (attempt - 1))
        raise TemporaryError(
            f"{shown(self.url)}: {cause}, after {self.limits.attempts} attempts; "
            "fetch it by other means and give a path"
        )

    def _receive(self, session: Session, file: HashingFile) -> None:
        with self._open(session, file.size) as response:
            if response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {file.size}-"
            ):
                logger.info("%s: going on at byte %d", shown(self.url), file.size)
            else:
                file.restart()
            self._check_headers(response, file)
            self._copy(response, file)
        if self.expected_bytes is not None and file.size != self.expected_bytes:
            raise BrokenError(f"broke off after {file.size:,} of {self.expected_bytes:,} bytes")

    def _open(self, session: Session, start: int) -> Response:
        """Follow redirects one by one: http(s) only, never from https to http, the password for its own host only."""
        parts = urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        url = urlunsplit(parts._replace(netloc=host))
        name, _, password = user.partition(":")
        auth: Any = (unquote(name), unquote(password)) if user else _anonymous
        limits = self.limits.connect_seconds, self.limits.head_seconds
        for _ in range(MAX_REDIRECTS + 1):
            response = session.get(
                url, headers=self._headers(start), auth=auth, stream=True, timeout=limits, allow_redirects=False
            )
            if not response.is_redirect:
                return self._checked(response, start)
            response.close()
            target = urljoin(url, response.headers["Location"])
            old, new = urlsplit(url), urlsplit(target)
            if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
                raise CheckpointError(f"{shown(url)} redirects to {shown(target)}: refused")
            if old.netloc != new.netloc:
                auth = _anonymous
            url = target
        raise CheckpointError(f"{shown(self.url)} redirects too often, at last to {shown(url)}: refused")

    def _headers(self, start: int) -> dict[str, str]:
        headers = {"User-Agent": "hydra-experiment-app", "Accept-Encoding": "identity"}
        strong = self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified
        if start and strong:
            headers |= {"Range": f"bytes={start}-", "If-Range": strong}
        elif not start and self.known is not None:
            conditions = {"If-None-Match": self.known["etag"], "If-Modified-Since": self.known["last_modified"]}
            headers |= {name: value for name, value in conditions.items() if value}
        return headers

    def _checked(self, response: Response, start: int) -> Response:
        status, says = response.status_code, f"the server says {response.status_code} {response.reason}"
        if status in (200, 206):
            return response
        response.close()
        if status == 304 and not start and self.known is not None:
            raise UnchangedError
        if status in TRY_AGAIN:
            raise BrokenError(says)
        raise CheckpointError(f"{shown(self.url)}: {says}")

    def _check_headers(self, response: Response, file: HashingFile) -> None:
        headers, where = response.headers, shown(self.url)
        if "text/html" in headers.get("Content-Type", ""):
            raise CheckpointError(
                f"{where} is a web page, not a file; the address may need a login, or be that of a view"
            )
        if headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(f"{where} comes compressed ({headers['Content-Encoding']}), which was not asked for")
        length, chunked = headers.get("Content-Length"), "chunked" in headers.get("Transfer-Encoding", "")
        if length is None and not chunked:
            raise CheckpointError(f"{where}: the server does not say how long the file is, so it cannot be complete")
        self.expected_bytes = None if length is None or chunked else file.size + int(length)
        if (self.expected_bytes or 0) > self.limits.max_bytes:
            raise CheckpointError(f"{where} has {self.expected_bytes:,} bytes, more than {self.limits.max_bytes:,}")
        self.etag, self.last_modified = headers.get("ETag"), headers.get("Last-Modified")
        described = {"etag": self.etag, "last_modified": self.last_modified, "size": self.expected_bytes}
        if self.known is not None and described == {key: self.known[key] for key in described}:
            raise UnchangedError  # a server that does not answer conditions
        check_space(Path(str(file.file.name)), self.expected_bytes or 0)

    def _copy(self, response: Response, file: HashingFile) -> None:
        from urllib3.exceptions import ProtocolError

        connection = response.raw.connection
        if connection is not None and connection.sock is not None:  # None: closed by the server after this file
            connection.sock.settimeout(self.limits.stall_seconds)
        window_start, window_bytes = time.monotonic(), 0
        while True:
            try:
                chunk = response.raw.read1(CHUNK_BYTES, decode_content=False)
            except ProtocolError:
                if self.expected_bytes is None:
                    raise BrokenError("broke off in the middle") from None
                return
            if not chunk:
                return
            if file.size == 0 and (kind := impostor(chunk[:HEAD_BYTES], len(chunk))) is not None:
                raise CheckpointError(f"{shown(self.url)} is not a checkpoint: it {kind}")
            file.write(chunk)
            if file.size > self.limits.max_bytes:
                raise CheckpointError(f"{shown(self.url)} goes on after {self.limits.max_bytes:,} bytes: not kept")
            window_bytes += len(chunk)
            if time.monotonic() - window_start > self.limits.stall_seconds:
                if window_bytes < self.limits.min_bytes:
                    raise BrokenError(f"only {window_bytes} bytes in {self.limits.stall_seconds:g} s")
                window_start, window_bytes = time.monotonic(), 0


def _anonymous(request: Any) -> Any:
    """No password, not even from ~/.netrc."""
    return request


def _cause(error: BaseException) -> str:
    """The innermost reason; the text of the outer ones holds the whole address."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    if any(isinstance(each, TimeoutError) for each in chain):
        return "no answer in time"
    if isinstance(error, BrokenError):
        return str(error)
    system = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    return system[-1] if system else type(chain[-1]).__name__
