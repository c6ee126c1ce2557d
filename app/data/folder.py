"""Image files, one folder per class, or named by list files; in a folder or in a tar archive of it."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch

from app.data.archive import open_archive
from app.data.source import ImageFiles, Splits, check_same_classes, pick, stratified_split
from app.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LAYOUT = (
    "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/), or with data.val_fraction=0.2 CLASS/*.jpg; "
    f"files ending in {', '.join(EXTENSIONS)}"
)


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


def folder(
    root: str,
    val_fraction: float | None = None,
    train_list: str | None = None,
    val_list: str | None = None,
    allow_empty: bool = False,
    max_pixels: int = 178_956_970,
    resize: int | None = None,
    cache: bool = False,
) -> Splits:
    """The splits below `root`; keys as in FolderConf.

    Raises:
        DataError: missing or empty folders, unknown or differing classes, no images.
    """
    listing = list_root(Path(root))
    options = (max_pixels, resize, cache)
    if train_list is not None:
        return _from_lists(listing, train_list, val_list, val_fraction, options)
    top = {name for name in listing.folders if "/" not in name}
    if val_fraction is not None:
        names, targets, classes = _classes_below(listing, "train" if "train" in top else "", allow_empty)
        return _held_out(listing.images(names, targets, *options), classes, val_fraction)
    parts = {name for name in ("train", "val", "test") if name in top}
    if "train" not in parts or len(parts) == 1:
        found = ", ".join(sorted(top)[:8]) or "no folders"
        raise DataError(f"data.root: {listing.root.absolute()} must hold {LAYOUT}; found: {found}")
    images, classes = {}, []
    for part in sorted(parts, key=("train", "val", "test").index):
        names, targets, found_classes = _classes_below(listing, part, allow_empty)
        classes = classes or found_classes
        check_same_classes(classes, found_classes, f"{part} ({listing.shown(part)})")
        images[part] = listing.images(names, targets, *options)
    return Splits(images["train"], images.get("val") or images["test"], classes, images.get("test"))


def list_root(root: Path) -> Listing:
    """All images and folders below a folder or in an archive; a single folder around train/ is looked through.

    Raises:
        DataError: there is no such folder or archive, or it holds no images.
    """
    if root.is_dir():
        listing = Listing(root)
        for parent, folders, files in os.walk(root, followlinks=True):
            place = PurePosixPath(os.path.relpath(parent, root))
            listing.folders.update(str(place / name) for name in folders)
            listing.files += [str(place / name) for name in files if name.lower().endswith(EXTENSIONS)]
    elif root.is_file():
        listing = _list_archive(root)
    else:
        raise DataError(f"data.root: {root.absolute()} does not exist; expected a folder or a .tar of it with {LAYOUT}")
    if not listing.files:
        raise DataError(f"data.root: no images in {root.absolute()}; expected {LAYOUT}")
    listing.files.sort()
    return listing


def _list_archive(root: Path) -> Listing:
    archive = open_archive(root)
    listing = Listing(root, archive=archive)
    try:
        with tarfile.open(archive, "r:") as tar:
            members = [member for member in tar if member.isfile() or member.isdir()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"data.root: {root.absolute()} is not a whole tar archive: {error}") from error
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


def _classes_below(listing: Listing, part: str, allow_empty: bool) -> tuple[list[str], list[int], list[str]]:
    """File names, their labels, and the class names (alphabetical) of the class folders below `part`."""
    prefix = f"{part}/" if part else ""
    below = (name.removeprefix(prefix) for name in listing.folders if name.startswith(prefix))
    classes = sorted(name for name in below if name and "/" not in name and not name.startswith("."))
    index = {name: i for i, name in enumerate(classes)}
    names, targets = [], []
    for name in listing.files:
        top, slash, _ = name.removeprefix(prefix).partition("/")
        if name.startswith(prefix) and slash and top in index:
            names.append(name)
            targets.append(index[top])
    if not names:
        raise DataError(f"data.root: no class folders with images in {listing.shown(part)}; expected {LAYOUT}")
    empty = [classes[i] for i in sorted(set(range(len(classes))) - set(targets))]
    if empty and not allow_empty:
        raise DataError(
            f"data.root: the class folder {listing.shown(prefix + empty[0])} holds no image ({', '.join(EXTENSIONS)})"
            f"{f', nor do {len(empty) - 1} others' if len(empty) > 1 else ''}; remove it, or set data.allow_empty=true "
            "to keep it as a class without samples"
        )
    return names, targets, classes


def _held_out(images: ImageFiles, classes: list[str], val_fraction: float) -> Splits:
    train, val = stratified_split(images.targets, val_fraction)
    return Splits(pick(images, train.tolist()), pick(images, val.tolist()), classes)


def _from_lists(
    listing: Listing,
    train_list: str,
    val_list: str | None,
    val_fraction: float | None,
    options: tuple[int, int | None, bool],
) -> Splits:
    """Splits from text files; labels are all numbers, or class names in alphabetical order."""
    if (val_list is None) == (val_fraction is None):
        raise DataError("data.train_list needs either data.val_list or data.val_fraction for the validation part")
    rows = _read_list(listing, train_list, "data.train_list")
    labels = {label for _, label, _ in rows}
    if all(label.lstrip("-").isdigit() for label in labels):
        classes = [str(i) for i in range(max(map(int, labels)) + 1)]
    else:
        classes = sorted(labels)
    names, targets = _labelled(rows, classes)
    train = listing.images(names, targets, *options)
    if val_list is None:
        assert val_fraction is not None
        return _held_out(train, classes, val_fraction)
    names, targets = _labelled(_read_list(listing, val_list, "data.val_list"), classes)
    return Splits(train, listing.images(names, targets, *options), classes)


def _read_list(listing: Listing, path: str, key: str) -> list[tuple[str, str, str]]:
    """(file name, label, place in the list file) of each line."""
    base = listing.root if listing.archive is None else listing.root.parent
    place = base / path
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}: cannot read {place.absolute()}: {error}") from error
    known, rows = set(listing.files), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        name = str(PurePosixPath(name.strip()))
        if not label or name == ".":
            raise DataError(f"{key}: {place}:{number}: expected `path label`, got {line!r}")
        if name not in known:
            raise DataError(f"{key}: {place}:{number}: no image {listing.shown(name)}")
        rows.append((name, label, f"{key}: {place}:{number}"))
    if not rows:
        raise DataError(f"{key}: {place.absolute()} names no images; expected lines of `path label`")
    return rows


def _labelled(rows: list[tuple[str, str, str]], classes: list[str]) -> tuple[list[str], list[int]]:
    index = {name: i for i, name in enumerate(classes)}
    for _, label, place in rows:
        if label not in index:
            raise DataError(
                f"{place}: label {label} is none of the {len(classes)} classes of data.train_list: "
                f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
            )
    return [name for name, _, _ in rows], [index[label] for _, label, _ in rows]
