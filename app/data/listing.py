"""The images and folders below a root, which is a folder or a tar archive of one."""

from __future__ import annotations

import logging
import os
import shlex
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch

from app.data.source import ImageFiles
from app.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LAYOUT = (
    "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/), or with data.val_fraction=0.2 CLASS/*.jpg; "
    f"files ending in {', '.join(EXTENSIONS)}"
)
JUNK = frozenset({"__macosx", "@eadir", "lost+found", "thumbs.db"})
"""Names, in small letters, that systems and programs put beside pictures: macOS, Synology, ext4, Windows."""

COMPRESSED = (b"\xfd7zXZ\x00", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")
"""How xz, gzip, bzip2 and zstd files begin."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Listing:
    """The images and folders below a root; names are relative, with slashes."""

    root: Path
    files: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    archive: Path | None = None
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)

    def shown(self, name: str) -> str:
        """How messages write it, and how it is opened where it is a file."""
        return str(self.root / name) if self.archive is None else f"{self.root}:{name}"

    def images(
        self, names: list[str], targets: list[int], max_pixels: int, resize: int | None, cache: bool
    ) -> ImageFiles:
        """The files as a source."""
        extents = [self.extents[name] for name in names] if self.archive else ()
        paths = [self.shown(name) for name in names]
        return ImageFiles(paths, torch.tensor(targets), self.archive, extents, max_pixels, resize, cache)


def list_root(root: Path) -> Listing:
    """All images and folders below a folder or in an archive; a single folder around train/ is looked through.

    Raises:
        DataError: there is no such folder or archive, or it holds no images.
    """
    if root.is_dir():
        listing = _list_folder(root)
    elif root.is_file():
        listing = _list_archive(root)
    else:
        raise DataError(f"data.root: {root.absolute()} does not exist; expected a folder or a .tar of it with {LAYOUT}")
    if not listing.files:
        raise DataError(f"data.root: no images in {root.absolute()}; expected {LAYOUT}")
    listing.files.sort()
    return listing


def is_junk(name: str) -> bool:
    """True for what systems and programs put beside pictures: hidden files, `__MACOSX`, `Thumbs.db`, …"""
    return name.startswith(".") or name.lower() in JUNK


def _list_folder(root: Path) -> Listing:
    """Visit every folder once: a link to one that was visited is another name for the same pictures."""
    listing = Listing(root)
    seen: dict[tuple[int, int], str] = {}
    folders, links = [""], list[str]()
    while folders or links:
        # Links last, and the outermost first: a folder's own place counts, wherever the links to it lie.
        links.sort(key=lambda name: (name.count("/"), name), reverse=True)
        name = folders.pop() if folders else links.pop()
        try:
            status = (root / name).stat()
            first = seen.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                target = listing.shown(first) if first else str(root)
                logger.warning("data.root: %s leads to %s, whose images are there already", listing.shown(name), target)
                continue
            listing.folders.add(name)
            with os.scandir(root / name) as found:
                entries = [entry for entry in found if not is_junk(entry.name)]
        except OSError as error:
            raise DataError(f"data.root: cannot look into {root / name}: {error.strerror}") from error
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(below)
            elif entry.name.lower().endswith(EXTENSIONS):
                listing.files.append(below)
    listing.folders.discard("")
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _list_archive(root: Path) -> Listing:
    with root.open("rb") as stream:
        if stream.read(6).startswith(COMPRESSED):
            folder = root.name.split(".")[0]
            raise DataError(
                f"data.root: {root.absolute()} is compressed, and nothing in it can be read without all that stands "
                f"before; unpack it: mkdir {shlex.quote(folder)} && tar -xf {shlex.quote(str(root.absolute()))} -C "
                f"{shlex.quote(folder)}, then data.root={folder}"
            )
    listing = Listing(root, archive=root)
    try:
        with tarfile.open(root, "r:") as tar:
            members = [member for member in tar if member.isfile() or member.isdir()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"data.root: {root.absolute()} is not a whole tar archive: {error}") from error
    members = [member for member in members if not any(is_junk(part) for part in PurePosixPath(member.name).parts)]
    names = [member.name.removeprefix("./").strip("/") for member in members]
    tops = {name.split("/")[0] for name in names} - {"", "."}
    wrapper = f"{tops.pop()}/" if len(tops) == 1 and "train" not in tops else ""
    for member, name in zip(members, names, strict=True):
        name = name.removeprefix(wrapper)
        if member.isfile() and name.lower().endswith(EXTENSIONS):
            listing.files.append(name)
            listing.extents[name] = (member.offset_data, member.size)
        elif member.isdir() and name not in ("", "."):
            listing.folders.add(name)
        listing.folders.update(str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")
    return listing
