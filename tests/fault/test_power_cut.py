"""F4: the power goes, right after a save or inside one: what the disk has by then is mounted again and looked at."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from operations import opened, save

from app import checkpoint
from app.recovery import newest_intact

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def succeeds(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True).returncode == 0


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    assert succeeds("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        assert succeeds("umount", place)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An image file, and where it is mounted. ext4 only: xfs and btrfs do not mount a copy beside the original."""
    image, place = tmp_path / "image", tmp_path / "live"
    image.touch()
    os.truncate(image, 16 << 20)
    if shutil.which("mkfs.ext4") is None or not succeeds("mkfs.ext4", image):
        pytest.skip("needs mkfs.ext4")
    place.mkdir()
    if not succeeds("mount", "-o", "loop", image, place):
        pytest.skip("may not mount")
    assert succeeds("umount", place)
    with mounted(image, place):
        yield image, place


def after_power_cut(image: Path, folder: Path) -> int:
    """The step that a start on a copy of the disk goes on from; what was not synced is not in the image file."""
    copy = folder / "copy"
    shutil.copyfile(image, copy)
    with mounted(copy, folder / "after") as place:
        found = newest_intact(place / "run")
        if found is None:
            return 0
        assert checkpoint.load(place / "run" / found.name)["model"]["w"][0] == found.step
        save(opened(place / "run", 2), found.step + 1)
        return found.step


def test_right_after_a_save(disk: tuple[Path, Path], tmp_path: Path) -> None:
    image, place = disk
    store = opened(place / "run", 2)
    for step in range(1, 7):
        save(store, step)
        assert after_power_cut(image, tmp_path) == step


def test_inside_a_save(disk: tuple[Path, Path], tmp_path: Path) -> None:
    image, place = disk
    done, tell = os.pipe()
    child = os.fork()
    if child == 0:
        store = opened(place / "run", 1)
        for step in range(1, 100_000):
            save(store, step)
            os.write(tell, step.to_bytes(4, "big"))
        os._exit(0)
    os.close(tell)
    try:
        for _ in range(6):
            complete = int.from_bytes(os.read(done, 4 * 10_000)[-4:], "big")
            os.kill(child, signal.SIGSTOP)
            assert after_power_cut(image, tmp_path) >= complete
            os.kill(child, signal.SIGCONT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(done)
