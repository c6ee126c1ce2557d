"""One HTTP transfer: time-outs, retries that go on where the last broke off, redirects that stay on the web."""

from __future__ import annotations

import base64
import http.client
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.checkpoint.torch_file import HEAD_BYTES, impostor
from app.checkpoint.writer import check_space
from app.errors import CheckpointError, TemporaryError
from app.files import HashingFile

CHUNK_BYTES = 1 << 18
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may do better next time."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How long and how much."""

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    """Without a byte, or with less than `least_bytes`."""
    least_bytes: int = 1024
    attempts: int = 4
    backoff_seconds: float = 1.0
    """Before the second attempt; doubled each time."""
    max_bytes: int = 4 << 30


class BrokenError(Exception):
    """An attempt failed in a way that another may not."""


PASSING_ERRORS = (BrokenError, http.client.HTTPException, TimeoutError, ConnectionError, urllib.error.URLError)


def shown(url: str) -> str:
    """The address without what may be secret: user, password, query."""
    if "://" not in url:
        return url
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Transfer:
    """One address into one file, over several attempts; each goes on where the last broke off, if the server can."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.url, self.limits = url, limits
        self.expected_bytes: int | None = None
        self._validator: str | None = None

    def receive_all(self, file: HashingFile) -> None:
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return self._receive(file)
            except PASSING_ERRORS as error:
                if file.error is not None:
                    raise
                cause = _cause(error)
                if attempt == self.limits.attempts:
                    raise TemporaryError(
                        f"{shown(self.url)}: {cause}, after {attempt} attempts; fetch it by other means and give a path"
                    ) from None
                logger.warning("%s: %s; trying again", shown(self.url), cause)
                time.sleep(self.limits.backoff_seconds * 2 ** (attempt - 1))
        return None

    def _receive(self, file: HashingFile) -> None:
        with self._open(file.size) as response:
            if response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {file.size}-"):
                logger.info("%s: going on at byte %d", shown(self.url), file.size)
            else:
                file.restart()
            self._check_headers(response, file)
            self._copy(response, file)
        if self.expected_bytes is not None and file.size != self.expected_bytes:
            raise BrokenError(f"broke off after {file.size:,} of {self.expected_bytes:,} bytes")

    def _open(self, start: int) -> Any:
        headers = {"User-Agent": "hydra-experiment-app", "Accept-Encoding": "identity"}
        parts = urllib.parse.urlsplit(self.url)
        if "@" in parts.netloc:
            user, _, netloc = parts.netloc.rpartition("@")
            headers["Authorization"] = "Basic " + base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            parts = parts._replace(netloc=netloc)
        if start and self._validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": self._validator}
        request = urllib.request.Request(urllib.parse.urlunsplit(parts), headers=headers)
        try:
            return _opener(self.limits).open(request, timeout=self.limits.connect_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in TRY_AGAIN:
                raise BrokenError(f"the server says {error.code} {error.reason}") from None
            raise CheckpointError(f"{shown(self.url)}: the server says {error.code} {error.reason}") from None

    def _check_headers(self, response: Any, file: HashingFile) -> None:
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
        check_space(Path(str(file.file.name)), self.expected_bytes or 0)
        etag = headers.get("ETag", "")
        self._validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")

    def _copy(self, response: Any, file: HashingFile) -> None:
        window_start, window_bytes = time.monotonic(), 0
        while chunk := response.read1(CHUNK_BYTES):
            if file.size == 0 and (kind := impostor(chunk[:HEAD_BYTES], len(chunk))) is not None:
                raise CheckpointError(f"{shown(self.url)} is not a checkpoint: it {kind}")
            file.write(chunk)
            if file.size > self.limits.max_bytes:
                raise CheckpointError(f"{shown(self.url)} goes on after {self.limits.max_bytes:,} bytes: not kept")
            window_bytes += len(chunk)
            if time.monotonic() - window_start > self.limits.stall_seconds:
                if window_bytes < self.limits.least_bytes:
                    raise BrokenError(f"only {window_bytes} bytes in {self.limits.stall_seconds:g} s")
                window_start, window_bytes = time.monotonic(), 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """http(s) only, never from https to http; the password stays with the host it was meant for."""

    max_redirections = 5

    def redirect_request(
        self, request: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(request.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise CheckpointError(f"{shown(request.full_url)} redirects to {shown(newurl)}: refused")
        following = super().redirect_request(request, fp, code, msg, headers, newurl)
        if following is not None and old.netloc != new.netloc:
            following.remove_header("Authorization")
        return following

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except CheckpointError:
            fp.close()
            raise
        except urllib.error.HTTPError as error:
            if error.code == code:
                error.close()
                target = shown(urllib.parse.urljoin(req.full_url, headers.get("Location", "")))
                raise CheckpointError(f"{shown(req.full_url)} redirects too often, or to {target}: refused") from None
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    """Without urllib's handlers of file:, ftp: and data:."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(limits.stall_seconds)

    class SecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(limits.stall_seconds)

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Connection, request)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(SecureConnection, request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        Plain(),
        Secure(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _cause(error: BaseException) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, http.client.IncompleteRead):
        return "broke off in the middle"
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
