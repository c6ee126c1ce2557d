"""F5, F6, F18, F19: damaged, moved, hostile checkpoints, and a full disk."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from invocation import Terminal
from operations import leftovers, opened, save, state_of

from app.checkpoint import contents, torch_file
from app.checkpoint.manifest import Manifest
from app.checkpoint.recovery import newest_intact
from app.checkpoint.space import SaveError
from app.errors import CheckpointError


def three_saved(folder: Path) -> None:
    store = opened(folder, 3)
    for step in (1, 2, 3):
        store.save(state_of(step), Manifest(f"epoch_{step}.pth", step, step, step, "full"))


@pytest.mark.parametrize("suffix", [".pth", ".json"])
def test_one_flipped_bit_anywhere(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    three_saved(tmp_path)
    path = tmp_path / f"epoch_3{suffix}"
    good = {each: each.read_bytes() for each in (tmp_path / "epoch_3.pth", tmp_path / "epoch_3.json")}
    places = random.Random(0)
    for _ in range(50):
        bad = bytearray(good[path])
        bad[places.randrange(len(bad))] ^= 1 << places.randrange(8)
        path.write_bytes(bad)
        caplog.clear()
        found = newest_intact(tmp_path)
        assert found is not None
        assert found.step == 2
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert str(path) in caplog.text
        assert (tmp_path / f"epoch_3{suffix}.damaged").read_bytes() == bad
        for original, content in good.items():
            original.write_bytes(content)
            original.with_name(original.name + ".damaged").unlink()
    assert newest_intact(tmp_path).step == 3  # type: ignore[union-attr]


def truncate(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut in half": truncate(lambda size: size // 2),
    "cut at the end": truncate(lambda size: size - 1),
    "emptied": truncate(lambda size: 0),
    "deleted": Path.unlink,
    "overwritten": lambda path: path.write_bytes(b"\0" * path.stat().st_size) and None,
    "lengthened": lambda path: path.write_bytes(path.read_bytes() + b"\0") and None,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_falls_back_one_by_one_and_never_to_zero(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    three_saved(tmp_path)
    damage(tmp_path / "epoch_3.pth")
    assert newest_intact(tmp_path).step == 2  # type: ignore[union-attr]
    damage(tmp_path / "epoch_2.pth")
    assert newest_intact(tmp_path).step == 1  # type: ignore[union-attr]
    assert len(caplog.records) == 2
    damage(tmp_path / "epoch_1.pth")
    for _ in range(2):  # a second start must not take the folder for an empty one
        with pytest.raises(CheckpointError, match=r"no intact checkpoint in .*epoch_1.pth.*resume=false") as caught:
            newest_intact(tmp_path)
        assert caught.value.exit_code == 66


@pytest.mark.parametrize("suffix", [".pth", ".json"])
def test_what_cannot_be_read_now_is_neither_passed_over_nor_set_aside(tmp_path: Path, suffix: str) -> None:
    """As without permission, or with a file server gone; here a link to itself, which stops root as well."""
    three_saved(tmp_path)
    newest, kept = tmp_path / f"epoch_3{suffix}", tmp_path / "kept"
    newest.rename(kept)
    newest.symlink_to(newest.name)
    with pytest.raises(CheckpointError, match=rf"epoch_3{suffix} cannot be read: Too many levels") as caught:
        newest_intact(tmp_path)
    assert caught.value.exit_code == 74
    kept.replace(newest)
    assert newest_intact(tmp_path).step == 3  # type: ignore[union-attr]


def test_two_damaged_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    three_saved(tmp_path)
    (tmp_path / "epoch_3.json").write_text("{")
    os.truncate(tmp_path / "epoch_2.pth", 100)
    assert newest_intact(tmp_path).step == 1  # type: ignore[union-attr]
    assert len(caplog.records) == 1
    assert "epoch_3.json" in caplog.text
    assert "epoch_2.pth" in caplog.text


def test_a_file_without_manifest_is_not_taken_for_nothing(tmp_path: Path) -> None:
    torch.save(state_of(1), tmp_path / "epoch_1.pth")
    with pytest.raises(CheckpointError, match=r"epoch_1.pth has no manifest"):
        newest_intact(tmp_path)
    assert contents.load(tmp_path / "epoch_1.pth")["progress"] == {"step": 1}


def test_a_manifest_of_a_newer_program(tmp_path: Path) -> None:
    three_saved(tmp_path)
    path = tmp_path / "epoch_3.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"epoch_3.json has format 2, this program reads up to 1"):
        newest_intact(tmp_path)
    assert path.exists()


def test_nothing_at_all(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "none") is None
    assert newest_intact(tmp_path) is None


def test_moved_renamed_and_with_the_clock_set_back(tmp_path: Path) -> None:
    three_saved(tmp_path / "old")
    for step, seconds in ((1, 300), (2, 200), (3, 100)):
        os.utime(tmp_path / "old" / f"epoch_{step}.pth", (seconds, seconds))
        os.utime(tmp_path / "old" / f"epoch_{step}.json", (seconds, seconds))
    shutil.move(tmp_path / "old", tmp_path / "new")
    found = newest_intact(tmp_path / "new")
    assert found is not None
    assert found.step == 3


def test_weights_only_files_cannot_be_resumed_from(tmp_path: Path) -> None:
    store = opened(tmp_path, -1)
    store.save({"format": 1, "kind": "weights", "model": {}}, Manifest("epoch_1.pth", 1, 1, 1, "weights"))
    with pytest.raises(CheckpointError, match=r"weights only.*resume=false load_from=.*epoch_1.pth"):
        newest_intact(tmp_path)


class Payload:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


def hostile(folder: Path) -> Iterator[tuple[str, Path]]:
    mark = folder / "mark"
    torch.save({"model": Payload(mark)}, folder / "zip.pth")
    yield "zip", folder / "zip.pth"
    torch.save({"model": Payload(mark)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    yield "legacy", folder / "legacy.pth"
    (folder / "pickle.pth").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    yield "pickle", folder / "pickle.pth"


def test_hostile_pickles_do_nothing(tmp_path: Path) -> None:
    for name, path in hostile(tmp_path):
        with pytest.raises(CheckpointError) as caught:
            torch_file.load(path)
        assert caught.value.exit_code == 66, name
        assert "system" in str(caught.value), name
        assert "weights_only" not in str(caught.value), name
        assert caught.value.__cause__ is None, name
    assert not (tmp_path / "mark").exists()


def test_bombs_are_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1).expand(10**9)}, tmp_path / "stride.pth")
    with pytest.raises(CheckpointError, match=r"claims 4,000,000,000 bytes"):
        torch_file.load(tmp_path / "stride.pth")
    torch.save({"model": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    deflated = zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as source, deflated as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        torch_file.load(tmp_path / "deflated.pth")
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"model": nested}, tmp_path / "nested.pth")
    assert isinstance(torch_file.load(tmp_path / "nested.pth"), dict)


FILES = {
    "empty": (b"", "empty"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git-lfs pointer"),
    "web page": (b"\n<!DOCTYPE html><html><body>sign in</body></html>", "web page"),
    "JSON": (b'{"error": "not found"}', "JSON"),
    "text": (b"hello", "damaged or not a checkpoint"),
    "zip": (b"PK\x05\x06" + b"\0" * 18, "not one written by torch.save"),
    "image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "not a checkpoint"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_what_is_not_a_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        torch_file.load(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_every_truncation_of_a_checkpoint_is_an_error_of_ours(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state_of(1), buffer)
    whole = buffer.getvalue()
    for size in range(0, len(whole), 97):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            torch_file.load(tmp_path / "cut.pth")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"\x80\x02}.")
        archive.writestr("script/code/__torch__.py", "")
    with pytest.raises(CheckpointError, match="TorchScript"):
        torch_file.load(tmp_path / "script.pt")


def test_what_a_crash_left_is_undone_whoever_has_its_number_now(tmp_path: Path) -> None:
    """Process 1 lives: in a container, or after a requeue on another machine, numbers are used again."""
    (tmp_path / "epoch_1.pth").write_bytes(b"no manifest yet")
    (tmp_path / ".epoch_1.json.1.tmp").write_text("{")
    (tmp_path / ".epoch_2.pth.1.tmp").write_bytes(b"half")
    assert newest_intact(tmp_path) is None, "the first save did not happen: a fresh start"
    opened(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for about two and a half of the checkpoints below."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5600k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a log file that could not be closed may still be open


def test_a_full_disk_then_room(small_disk: Path) -> None:
    big = {"format": 1, "kind": "full", "progress": {}, "model": {"w": torch.zeros(500_000)}}
    store = opened(small_disk / "run", -1)
    store.save(big, Manifest("epoch_1.pth", 1, 1, 1, "full"))
    store.save(big, Manifest("epoch_2.pth", 2, 2, 2, "full"))
    for _ in range(2):
        with pytest.raises(
            SaveError, match=r"epoch_3.pth: No space left on device \([\d,]+ bytes needed, [\d,]+ bytes"
        ):
            store.save(big, Manifest("epoch_3.pth", 3, 3, 3, "full"))
    assert leftovers(small_disk / "run") == []
    assert newest_intact(small_disk / "run").step == 2  # type: ignore[union-attr]
    (small_disk / "filler").write_bytes(b"\0" * 1_200_000)
    with pytest.raises(SaveError):  # no room even for what the writer finds out on the way
        store.save(big, Manifest("epoch_3.pth", 3, 3, 3, "full"))
    (small_disk / "filler").unlink()
    (small_disk / "run" / "epoch_1.json").unlink()
    (small_disk / "run" / "epoch_1.pth").unlink()
    store.save(big, Manifest("epoch_3.pth", 3, 3, 3, "full"))
    assert newest_intact(small_disk / "run").step == 3  # type: ignore[union-attr]


def test_a_disk_that_fills_up_on_the_way(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.checkpoint.directory.check_space", lambda path, needed: None)  # as under a quota
    big = {"format": 1, "kind": "full", "progress": {}, "model": {"w": torch.zeros(2_000_000)}}
    store = opened(small_disk / "run", 1)
    save(store, 1)
    with pytest.raises(SaveError, match="No space left on device"):
        store.save(big, Manifest("epoch_2.pth", 2, 2, 2, "full"))
    assert leftovers(small_disk / "run") == []
    assert newest_intact(small_disk / "run").step == 1  # type: ignore[union-attr]


def test_a_run_on_a_full_disk_says_so(small_disk: Path, terminal: Terminal) -> None:
    """The log lies on that disk too: no traceback a line."""
    small = ("data.limit_train=32", "data.limit_val=32", "model=mlp", "schedule.warmup=0", "train.max_epochs=3")
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (5600 * 1024 - 40 * 1024))
    outcome = terminal.run(*small, "output_root=disk")
    assert outcome.code == 74
    outcome.says(r"epoch_1.pth: No space left on device \([\d,]+ by")
    assert outcome.message.count("app.log: No space left") <= 1
    assert "Logging error" not in outcome.message
    early = terminal.run(*small, "output_root=disk")
    assert early.code in (73, 74)
    early.says(r"error: cannot (make or )?write .*: No space left on device")
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    nothing = terminal.run(*small, "output_root=disk")
    assert nothing.code == 73
    nothing.says(r"error: cannot make or write (the run folder|/.*): No space left on device")
