"""Labels in the order of another class list: that of a checkpoint, whose outputs have it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from app.data.source import ImageFiles, ImageTensor, MapDataset, Source, Splits

logger = logging.getLogger(__name__)


class Relabelled:
    """A dataset of one's own with its labels changed."""

    def __init__(self, dataset: MapDataset, table: torch.Tensor, count: int) -> None:
        self.dataset, self.table, self.count = dataset, table, count
        if len(targets := torch.as_tensor(getattr(dataset, "targets", ()))):
            self.targets = relabel(targets, table, count)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Any:
        image, target = self.dataset[index]
        return image, relabel(torch.as_tensor(target), self.table, self.count)


def in_order_of(splits: Splits, classes: Sequence[str], *, partial: bool = False) -> Splits:
    """The splits with `classes` as their classes, where the names are the same; else the splits as they are.

    Args:
        splits: of any data set.
        classes: in the order that is wanted.
        partial: also where the splits lack some of the classes, which then have no samples.
    """
    own = list(splits.classes)
    missing = [name for name in classes if name not in own]
    unknown = set(own) - set(classes)
    unclear = len(set(own)) < len(own) or len(set(classes)) < len(classes)
    if own == list(classes) or unknown or unclear or (missing and not partial):
        return splits
    if missing:
        logger.warning(
            "data: no samples of %d of the checkpoint's %d classes (%s); evaluated with all of its classes",
            len(missing), len(classes), ", ".join(missing[:5]) + (", …" if len(missing) > 5 else ""),
        )  # fmt: skip
    else:
        logger.info("data: classes in the checkpoint's order")
    table = torch.tensor([list(classes).index(name) for name in own])
    train, val = (_relabelled(part, table, len(classes)) for part in (splits.train, splits.val))
    test = None if splits.test is None else _relabelled(splits.test, table, len(classes))
    return replace(splits, train=train, val=val, test=test, classes=list(classes))


def relabel(targets: torch.Tensor, table: torch.Tensor, count: int) -> torch.Tensor:
    """Class indices looked up in `table`; of multi-label targets (…, classes) the columns moved, new ones 0."""
    if not targets.is_floating_point():
        known = (targets >= 0) & (targets < len(table))  # what is no class is refused later, by name
        return torch.where(known, table[targets.clamp(0, len(table) - 1).long()], targets)
    moved = targets.new_zeros(*targets.shape[:-1], count)
    moved[..., table] = targets
    return moved


def _relabelled(source: Source, table: torch.Tensor, count: int) -> Source:
    if isinstance(source, (ImageTensor, ImageFiles)):
        return replace(source, targets=relabel(source.targets, table, count))
    return Relabelled(source, table, count)
