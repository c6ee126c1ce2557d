"""F14: every way in which a server can misbehave, on loopback."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from app.checkpoint.download import cache_folder, local_file
from app.checkpoint.transfer import Limits, shown
from app.checkpoint.weights import read_weights
from app.errors import CheckpointError, ConfigError, RunError, TemporaryError

LIMITS = Limits(
    connect_seconds=5, head_seconds=20, stall_seconds=20, attempts=3, backoff_seconds=0.01, max_bytes=1_000_000
)
IMPATIENT = replace(LIMITS, head_seconds=0.3, stall_seconds=0.3)


def checkpoint_bytes(count: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(float(count))}, buffer)
    return buffer.getvalue()


GOOD, OTHER = checkpoint_bytes(20_000), checkpoint_bytes(30_000)
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
        getattr(self, self.server.now or name)()

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.server.statuses.append(status)
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

    def serve(self, conditions: bool, **headers: str) -> None:
        """The server's present content, or 304 where it is asked whether it is still the same."""
        asked = {self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")} - {None}
        if conditions and asked & set(headers.values()):
            self.answer(b"", status=304)
        else:
            self.answer(self.server.content, **headers)

    def tagged(self) -> None:
        self.serve(True, ETag=f'"{len(self.server.content)}"')

    def dated(self) -> None:
        hour = 1 + (self.server.content is OTHER)
        self.serve(True, Last_Modified=f"Thu, 01 Jan 2026 0{hour}:00:00 GMT")

    def deaf(self) -> None:
        self.serve(False, ETag=f'"{len(self.server.content)}"')

    def bare(self) -> None:
        self.serve(False)

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
        self.statuses: list[int] = []
        self.now: str | None = None
        self.content = GOOD

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
def test_a_hostile_file_is_refused_and_not_kept(server: Server, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"/{name}.pth .*not kept"):
        local_file(server.url(name), limits=LIMITS)
    assert "MARK" not in os.environ
    assert not list(tmp_path.rglob("slipped"))
    assert cached() == []
    server.now = "good"  # the server is mended
    assert local_file(server.url(name), limits=LIMITS).read_bytes() == GOOD


def make_old(path: Path) -> None:
    """So that the server is asked again."""
    os.utime(path.with_name(f"{path.name}.json"), (1, 1))


@pytest.mark.parametrize("name", ["tagged", "dated", "deaf", "bare"])
def test_a_changed_file_is_seen_and_an_unchanged_one_is_not_fetched_again(server: Server, name: str) -> None:
    """Servers with an ETag, with Last-Modified, with an ETag but without conditions, and with nothing but a length."""
    path = local_file(server.url(name), limits=LIMITS)
    assert path.read_bytes() == GOOD
    for count in (2, 3):
        make_old(path)
        assert local_file(server.url(name), limits=LIMITS).read_bytes() == GOOD
        assert len(server.seen) == count
    if name in ("tagged", "dated"):
        assert server.statuses == [200, 304, 304]
    server.content = OTHER
    assert local_file(server.url(name), limits=LIMITS).read_bytes() == GOOD, "all processes of a run take one file"
    make_old(path)
    assert local_file(server.url(name), limits=LIMITS).read_bytes() == OTHER
    assert local_file(f"{server.url(name)}#sha256={hashlib.sha256(OTHER).hexdigest()}", limits=LIMITS) == path


def test_without_a_server_the_copy_is_used_and_it_is_said(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    path = local_file(server.url("tagged"), limits=LIMITS)
    make_old(path)
    server.now = "broken"
    assert local_file(server.url("tagged"), limits=LIMITS) == path
    assert "the server says 500" in caplog.text
    assert "using the copy that was fetched before" in caplog.text
    server.now = "missing"
    with pytest.raises(CheckpointError, match="the server says 404"):
        local_file(server.url("tagged"), limits=LIMITS)


def test_the_hash_in_a_name_of_torch_hub_is_verified(server: Server) -> None:
    server.now = "good"
    local_file(server.url(f"net-{SHA256[:8]}"), limits=LIMITS)
    local_file(server.url("net-20240131"), limits=LIMITS)
    with pytest.raises(CheckpointError, match=rf"has sha256 {SHA256}, but its name says 0badf00d"):
        local_file(server.url("net-0badf00d"), limits=LIMITS)
    assert len(cached()) == 4
    local_file(f"{server.url('net-0badf00d')}#sha256={SHA256}", limits=LIMITS)


def test_a_server_that_does_not_begin_to_answer_is_named_soon(server: Server) -> None:
    """However long the file may stall later."""
    with pytest.raises(TemporaryError, match="no answer in time, after 3 attempts"):
        local_file(server.url("stalls_before"), limits=replace(LIMITS, head_seconds=0.2, stall_seconds=1000))
    assert Limits().head_seconds * Limits().attempts < 45


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_download(server: Server, tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "app", "load_from=" + server.url("stalls_before"), "hydra.run.dir=run"]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}) as process:
        while not server.seen:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == code
    assert [name for name in cached() if not name.endswith(".tmp")] == []


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
