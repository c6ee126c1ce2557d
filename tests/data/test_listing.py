"""What below a root is data: junk, links, archives."""

import shutil
import tarfile
from pathlib import Path

import pytest

from app.data.folder import folder
from app.data.listing import list_root
from app.data.source import ImageFiles

JUNK = [
    "train/.ipynb_checkpoints/cat/1.jpg",
    "train/cat/.ipynb_checkpoints/1-checkpoint.jpg",
    "train/cat/._1.jpg",
    "train/@eaDir/cat/1.jpg",
    "train/cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/train/cat/._1.jpg",
    "__MACOSX/train/cat/1.jpg",
    "lost+found/1.jpg",
    "val/lost+found/1.jpg",
    "train/Thumbs.db/1.jpg",
    "val/cat/Thumbs.db",
    ".git/1.jpg",
    ".DS_Store",
]
DATA = [f"{part}/{name}/{i}.jpg" for part in ("train", "val") for name in ("cat", "dog") for i in range(2)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight pictures, by their names, which is all that listing looks at."""
    write(tmp_path / ".hidden/set", DATA)  # what is above the root may be called anything
    return tmp_path / ".hidden/set"


def write(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"a picture")


def pictures(root: Path) -> list[str]:
    splits = folder(str(root))
    assert isinstance(splits.train, ImageFiles)
    assert isinstance(splits.val, ImageFiles)
    assert list(splits.classes) == ["cat", "dog"]
    return [path.removeprefix(str(root)).strip("/:") for path in (*splits.train.paths, *splits.val.paths)]


@pytest.mark.parametrize("archive", [False, True])
def test_junk_is_no_data_at_any_depth(root: Path, archive: bool, tmp_path: Path) -> None:
    write(root, JUNK)
    place = root
    if archive:
        place = tmp_path / "set.tar"
        with tarfile.open(place, "w") as tar:
            tar.add(root, ".")
    assert pictures(place) == DATA


@pytest.mark.parametrize("wrapped", [False, True])
def test_junk_beside_the_folder_of_an_archive(root: Path, tmp_path: Path, wrapped: bool) -> None:
    """macOS packs __MACOSX/ beside the folder, which is looked through all the same."""
    write(root, JUNK)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, "flowers" if wrapped else ".")
        tar.add(root / "train", "__MACOSX/flowers/train")
    assert pictures(tmp_path / "set.tar") == DATA


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "."])
def test_a_link_upwards_adds_nothing(root: Path, target: str, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train/cat/up").symlink_to(target)
    (root / "train/up").symlink_to("..")
    (root / "train/cat/nowhere").symlink_to("nowhere")
    if target != "../../..":  # that is outside: its other folders are new, and their own names say where they lie
        assert pictures(root) == DATA
        assert "whose images are there already" in caplog.text


def test_a_linked_folder_is_visited_once_under_its_own_name(root: Path, tmp_path: Path) -> None:
    (root / "train/cat/a link to dog").symlink_to("../dog")
    (root / "train/cat/a link to val").symlink_to("../../val")
    assert pictures(root) == DATA
    shutil.move(root / "train/dog", tmp_path / "elsewhere")
    (root / "train/dog").symlink_to(tmp_path / "elsewhere")
    (root / "train/cat/a second").symlink_to(tmp_path / "elsewhere")
    found = pictures(root)
    assert len(found) == 8
    assert found[:2] == DATA[:2]


def test_the_same_folder_for_validation_and_test(root: Path) -> None:
    (root / "test").symlink_to("val")
    assert folder(str(root)).test is None, "which means the validation part"


def test_every_folder_is_listed_once(root: Path) -> None:
    listing = list_root(root)
    assert listing.files == sorted(DATA)
    assert listing.folders == {"train", "val", "train/cat", "train/dog", "val/cat", "val/dog"}
