import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.files import locked, read_json, remove_leftovers, replace_link, write_durable, write_json, write_text


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"lr": 0.1, "path": Path("x"), "raw": "\udcff"})
    assert read_json(path) == {"lr": 0.1, "path": "x", "raw": "\udcff"}
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\x00", b"[1]", b"[" * 100_000])
def test_a_damaged_record_is_one_warning_and_absent(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read_json(path) is None
    assert read_json(path) is None
    assert [(record.levelno, str(path) in record.message) for record in caplog.records] == [(logging.WARNING, True)]


def test_an_unreadable_record_is_one_warning_an_absent_one_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder.json").mkdir()
    assert read_json(tmp_path / "folder.json") is None
    assert len(caplog.records) == 1
    assert read_json(tmp_path / "none.json") is None
    assert len(caplog.records) == 1


def test_text_is_utf8_in_every_locale(tmp_path: Path) -> None:
    code = "import sys, pathlib, app.files; app.files.write_text(pathlib.Path(sys.argv[1]), chr(8594))"
    path = tmp_path / "a.txt"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    assert path.read_bytes() == "→".encode()


def test_a_failed_write_leaves_the_old_content_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with Path("/dev/full").open("wb", buffering=0) as full:

        def fill(file: object) -> None:
            full.write(b"x")

        with pytest.raises(OSError, match="No space left") as raised:
            write_durable(path, fill)
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from app.files import write_durable\n"
        "write_durable(Path(sys.argv[1]), lambda file: (file.write(b'x'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        replace_link(tmp_path / "latest", name)
    assert os.readlink(tmp_path / "latest") == "b"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_names_its_holder_and_passes_to_those_who_inherit_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path) as descriptor:
        heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
        with pytest.raises(BlockingIOError) as raised, locked(path):
            pass
        assert raised.value.strerror.startswith(f"process {os.getpid()} on ")
    with heir, pytest.raises(BlockingIOError), locked(path):
        pass
    with locked(path, patience_seconds=60):
        pass
