"""Image files, one folder per class, or named by list files; in a folder or in a tar archive of it."""

from __future__ import annotations

import logging
from pathlib import Path

from app.data.label_list import labelled, number_labels, read_list
from app.data.listing import EXTENSIONS, LAYOUT, Listing, list_root
from app.data.source import ImageFiles, Splits, check_same_classes, pick
from app.data.split import split_by_name
from app.errors import DataError

logger = logging.getLogger(__name__)


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
    parts: list[str] = [name for name in ("train", "val", "test") if name in top]
    if val_fraction is not None:
        parts = [name for name in parts if name != "val"] if "train" in parts else [""]
    elif "train" not in parts or len(parts) == 1:
        found = ", ".join(sorted(top)[:8]) or "no folders"
        raise DataError(f"data.root: {listing.root.absolute()} must hold {LAYOUT}; found: {found}")
    images: dict[str, ImageFiles] = {}
    classes: list[str] = []
    for part in parts:
        names, targets, found_classes = _classes_below(listing, part, allow_empty)
        classes = classes or found_classes
        check_same_classes(classes, found_classes, f"{part} ({listing.shown(part)})")
        images[part] = listing.images(names, targets, *options)
        if val_fraction is not None and part != "test":
            below = [name.removeprefix(f"{part}/") for name in names]  # the class folder and what is in it
            images["train"], images["val"] = _held_out(images.pop(part), below, val_fraction)
    return Splits(images["train"], images.get("val") or images["test"], classes, images.get("test"))


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


def _from_lists(
    listing: Listing,
    train_list: str,
    val_list: str | None,
    val_fraction: float | None,
    options: tuple[int, int | None, bool],
) -> Splits:
    if (val_list is None) == (val_fraction is None):
        raise DataError("data.train_list needs either data.val_list or data.val_fraction for the validation part")
    rows = read_list(listing, train_list, "data.train_list")
    index = number_labels(rows)
    names, targets = labelled(rows, index)
    train = listing.images(names, targets, *options)
    if val_list is None:
        assert val_fraction is not None
        train, val = _held_out(train, [f"{row.label}/{row.name}" for row in rows], val_fraction)
        return Splits(train, val, list(index))
    names, targets = labelled(read_list(listing, val_list, "data.val_list"), index)
    return Splits(train, listing.images(names, targets, *options), list(index))


def _held_out(images: ImageFiles, names: list[str], val_fraction: float) -> tuple[ImageFiles, ImageFiles]:
    """The training and the validation part; see `split_by_name`."""
    train, val = split_by_name(names, images.targets.tolist(), val_fraction)
    logger.info(
        "data.val_fraction=%g: %d of %d images are held out, chosen by a hash of their names",
        val_fraction,
        len(val),
        len(names),
    )
    return pick(images, train), pick(images, val)
