"""F4: the power goes, right after a save or inside one: what the disk has by then is mounted again and looked at."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from operations import opened, save

from app.checkpoint import contents
from app.checkpoint.recovery import newest_intact

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def succeeds(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True).returncode == 0


SIZES_MIB = {"ext4": 16, "xfs": 320, "btrfs": 128}
"""About the least that each file system can be made with."""
OPTIONS = {"xfs": "loop,nouuid"}
"""A copy is mounted beside the original, with the same identifier; btrfs takes that since Linux 6.7."""


class Disk(NamedTuple):
    image: Path
    place: Path
    options: str


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    assert succeeds("mount", "-o", options, image, place)
    try:
        yield place
    finally:
        assert succeeds("umount", place)


@pytest.fixture(params=SIZES_MIB)
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """An image file with a file system on it, mounted."""
    kind: str = request.param
    image, place, options = tmp_path / "image", tmp_path / "live", OPTIONS.get(kind, "loop")
    image.touch()
    os.truncate(image, SIZES_MIB[kind] << 20)
    if shutil.which(f"mkfs.{kind}") is None or not succeeds(f"mkfs.{kind}", image):
        pytest.skip(f"needs mkfs.{kind}")
    place.mkdir()
    if not succeeds("mount", "-o", options, image, place):
        pytest.skip(f"may not mount {kind}")
    assert succeeds("umount", place)
    with mounted(image, place, options):
        yield Disk(image, place, options)


def after_power_cut(disk: Disk, folder: Path) -> int:
    """The step that a start on a copy of the disk goes on from; what was not synced is not in the image file."""
    copy = folder / "copy"
    assert succeeds("cp", "--sparse=always", disk.image, copy)
    with mounted(copy, folder / "after", disk.options) as place:
        found = newest_intact(place / "run")
        if found is None:
            return 0
        assert contents.load(place / "run" / found.name)["model"]["w"][0] == found.step
        save(opened(place / "run", 2), found.step + 1)
        return found.step


def test_right_after_a_save(disk: Disk, tmp_path: Path) -> None:
    store = opened(disk.place / "run", 2)
    for step in range(1, 7):
        save(store, step)
        assert after_power_cut(disk, tmp_path) == step


def test_inside_a_save(disk: Disk, tmp_path: Path) -> None:
    done, tell = os.pipe()
    child = os.fork()
    if child == 0:
        store = opened(disk.place / "run", 1)
        for step in range(1, 100_000):
            save(store, step)
            os.write(tell, step.to_bytes(4, "big"))
        os._exit(0)
    os.close(tell)
    try:
        for _ in range(6):
            complete = int.from_bytes(os.read(done, 4 * 10_000)[-4:], "big")
            os.kill(child, signal.SIGSTOP)
            assert after_power_cut(disk, tmp_path) >= complete
            os.kill(child, signal.SIGCONT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(done)
