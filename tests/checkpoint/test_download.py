"""F14: every way in which a server can misbehave, on loopback."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from app.checkpoint import torch_file
from app.checkpoint.download import cache_folder, local_file
from app.checkpoint.transfer import Limits, shown
from app.checkpoint.weights import read_weights
from app.errors import CheckpointError, ConfigError, RunError, TemporaryError

LIMITS = Limits(connect_seconds=5, stall_seconds=20, attempts=3, backoff_seconds=0.01, max_bytes=1_000_000)
IMPATIENT = replace(LIMITS, stall_seconds=0.3)


def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(20_000.0)}, buffer)
    return buffer.getvalue()


GOOD = checkpoint_bytes()
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One path, one misbehaviour."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.split("?")[0].strip("/").removesuffix(".pth")
        self.server.seen.append(self.path)
        self.server.headers.append(dict(self.headers))
        getattr(self, name)()

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def good(self) -> None:
        self.answer(GOOD)

    def closes_early(self) -> None:
        self.answer(GOOD[: len(GOOD) // 2], length=len(GOOD))

    def closes_once(self) -> None:
        """Breaks off the first time, and can go on from there."""
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        if start == "0":
            self.answer(GOOD[:30_000], length=len(GOOD), ETag='"one"')
        elif self.headers.get("If-Range") == '"one"':
            rest = GOOD[int(start) :]
            self.answer(rest, status=206, Content_Range=f"bytes {start}-{len(GOOD) - 1}/{len(GOOD)}", ETag='"one"')

    def changes(self) -> None:
        """Breaks off, and is another file the next time."""
        if len(self.server.seen) == 1:
            self.answer(b"x" * 30_000, length=len(GOOD), ETag='"one"')
        else:
            self.answer(GOOD, ETag='"two"')

    def stalls_before(self) -> None:
        time.sleep(1)

    def stalls_inside(self) -> None:
        self.answer(GOOD[:1000], length=len(GOOD) + 1)
        time.sleep(1)

    def endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"10000\r\n" + b"\0" * 0x10000 + b"\r\n")
        except OSError:
            self.close_connection = True

    def drips(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        try:
            for _ in range(30):
                self.wfile.write(b"P")
                time.sleep(0.05)
        except OSError:
            pass
        self.close_connection = True

    def too_large(self) -> None:
        self.answer(b"", length=2_000_000)

    def without_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(GOOD)
        self.close_connection = True

    def page(self) -> None:
        self.answer(b"<!doctype html><p>Sign in", Content_Type="text/html")

    def page_in_disguise(self) -> None:
        self.answer(b"<!doctype html><p>Sign in", Content_Type="application/octet-stream")

    def compressed(self) -> None:
        self.answer(GOOD, Content_Encoding="gzip")

    def loop(self) -> None:
        self.answer(b"", status=302, Location="/loop.pth")

    def chain(self) -> None:
        self.answer(b"", status=302, Location=f"/chain.pth?{len(self.server.seen)}")

    def to_file(self) -> None:
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def moved(self) -> None:
        self.answer(b"", status=301, Location="/good.pth")

    def elsewhere(self) -> None:
        host = f"localhost:{self.server.server_port}"
        self.answer(b"", status=307, Location=f"http://{host}/good.pth")

    def missing(self) -> None:
        self.answer(b"no", status=404)

    def broken(self) -> None:
        self.answer(b"no", status=500)

    def busy_once(self) -> None:
        if len(self.server.seen) == 1:
            self.answer(b"no", status=503)
        else:
            self.answer(GOOD)

    def hostile(self) -> None:
        self.answer(pickle.dumps(Mark(), protocol=2))

    def bomb(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 30_000_000)
        self.answer(buffer.getvalue())

    def slip(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("../../slipped", b"x")
        self.answer(buffer.getvalue())


class Mark:
    """Unpickled, it would show."""

    def __reduce__(self) -> tuple[Callable[[str, str], None], tuple[str, str]]:
        return os.putenv, ("MARK", "1")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that leave are the point

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}.pth"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cached() -> list[str]:
    """What lies in the cache, without locks."""
    if not cache_folder().exists():
        return []
    return sorted(path.name for path in cache_folder().iterdir() if not path.name.endswith(".lock"))


REFUSED: dict[str, tuple[type[RunError], str]] = {
    "closes_early": (TemporaryError, r"broke off after [\d,]+ of [\d,]+ bytes, after 3 attempts"),
    "stalls_before": (TemporaryError, "no answer in time"),
    "stalls_inside": (TemporaryError, "no answer in time"),
    "drips": (TemporaryError, r"only \d+ bytes in 0.3 s"),
    "endless": (CheckpointError, "goes on after 1,000,000 bytes"),
    "too_large": (CheckpointError, "has 2,000,000 bytes, more than 1,000,000"),
    "without_length": (CheckpointError, "does not say how long"),
    "page": (CheckpointError, "is a web page"),
    "page_in_disguise": (CheckpointError, "looks like a web page"),
    "compressed": (CheckpointError, "comes compressed"),
    "loop": (CheckpointError, "redirects too often"),
    "chain": (CheckpointError, "redirects too often"),
    "to_file": (CheckpointError, "redirects .*file:///etc/passwd: refused"),
    "missing": (CheckpointError, "the server says 404"),
    "broken": (TemporaryError, "the server says 500 .*after 3 attempts"),
}


@pytest.mark.parametrize(("name", "error", "message"), [(name, *value) for name, value in REFUSED.items()], ids=REFUSED)
def test_a_bad_server_gives_an_error_and_leaves_nothing(
    server: Server, name: str, error: type[RunError], message: str
) -> None:
    limits = IMPATIENT if name.startswith(("stalls", "drips")) else LIMITS
    with pytest.raises(error, match=message) as caught:
        local_file(server.url(name) + "?token=canary", limits=limits)
    assert f"/{name}.pth" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert cached() == []
    attempts = [path for path in server.seen if path.startswith(f"/{name}.pth?token")]
    assert len(attempts) == (3 if error is TemporaryError else 1)


def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(TemporaryError, match="refused, after 3 attempts") as caught:
        local_file(f"http://127.0.0.1:{port}/x.pth", limits=LIMITS)
    assert caught.value.exit_code == 75


def test_good_is_fetched_once_and_verified_at_each_use(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    first = local_file(server.url("good"), limits=LIMITS)
    assert first.read_bytes() == GOOD
    assert first.parent == cache_folder()
    assert "without encryption" in caplog.text
    assert local_file(f"{server.url('good')}#sha256={SHA256}", limits=LIMITS) == first
    assert len(server.seen) == 1
    first.write_bytes(GOOD[:-1] + b"x")
    assert local_file(server.url("good"), limits=LIMITS).read_bytes() == GOOD
    assert "is damaged; fetching it again" in caplog.text
    assert len(server.seen) == 2
    assert len(cached()) == 2


def test_the_wrong_hash_is_not_kept(server: Server) -> None:
    with pytest.raises(CheckpointError, match=f"has sha256 {SHA256}, not {'0' * 64}: not kept"):
        local_file(f"{server.url('good')}#sha256={'0' * 64}", limits=LIMITS)
    assert cached() == []
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        local_file(f"{server.url('good')}#sha256=abc", limits=LIMITS)


def test_a_broken_transfer_goes_on_where_it_broke_off(server: Server) -> None:
    assert local_file(server.url("closes_once"), limits=LIMITS).read_bytes() == GOOD
    assert server.headers[1]["Range"] == "bytes=30000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server) -> None:
    assert local_file(server.url("changes"), limits=LIMITS).read_bytes() == GOOD


def test_a_busy_server_is_asked_again(server: Server) -> None:
    assert local_file(server.url("busy_once"), limits=LIMITS).read_bytes() == GOOD


def test_redirects_are_followed(server: Server) -> None:
    assert local_file(server.url("moved"), limits=LIMITS).read_bytes() == GOOD


def test_the_password_stays_with_its_host(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = server.url("elsewhere").replace("http://", "http://user:canary@")
    local_file(address, limits=LIMITS)
    assert server.headers[0]["Authorization"].startswith("Basic ")
    assert "Authorization" not in server.headers[1]
    assert "canary" not in caplog.text
    assert not any(b"canary" in path.read_bytes() for path in cache_folder().iterdir() if path.is_file())


@pytest.mark.parametrize("name", ["hostile", "bomb", "slip"])
def test_a_hostile_file_is_refused_when_it_is_read(server: Server, name: str, tmp_path: Path) -> None:
    path = local_file(server.url(name), limits=LIMITS)
    with pytest.raises(CheckpointError):
        torch_file.load(path)
    assert "MARK" not in os.environ
    assert not list(tmp_path.rglob("slipped"))


def test_two_at_once_fetch_once(server: Server) -> None:
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(local_file(server.url("good"), limits=LIMITS))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(server.seen) == 1


def test_a_signal_ends_a_download(server: Server) -> None:
    limits = Limits(stall_seconds=30, attempts=1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        local_file(server.url("stalls_before"), limits=limits, interrupted=lambda: time.monotonic() > began + 0.1)
    assert cached() == []


def test_other_schemes_and_missing_files(tmp_path: Path) -> None:
    for location in ("file:///etc/passwd", "ftp://host/x.pth", "s3://bucket/x.pth"):
        with pytest.raises(ConfigError, match="only paths, http:// and https://"):
            local_file(location)
    with pytest.raises(CheckpointError, match="does not exist"):
        local_file(str(tmp_path / "none.pth"))
    (tmp_path / "good.pth").write_bytes(GOOD)
    assert local_file(f"{tmp_path / 'good.pth'}#sha256={SHA256.upper()}") == tmp_path / "good.pth"
    with pytest.raises(CheckpointError, match=f"has sha256 {SHA256}"):
        local_file(f"{tmp_path / 'good.pth'}#sha256={'1' * 64}")


def test_secrets_of_an_address_are_not_shown() -> None:
    assert shown("https://user:word@host:8/a/b.pth?X-Amz-Signature=1#sha256=2") == "https://host:8/a/b.pth"


def test_weights_come_from_an_address(server: Server) -> None:
    assert torch.equal(read_weights(server.url("good")).entries["w"], torch.arange(20_000.0))
