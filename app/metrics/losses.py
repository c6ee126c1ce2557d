"""The loss: cross-entropy or binary cross-entropy, with label smoothing, for class indices and for soft targets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(n, classes) logits and targets, (n,) class indices or (n, classes) floats, -> the loss."""


def build_loss(conf: Mapping[str, Any], num_classes: int, reduction: str = "mean") -> Loss:
    """The loss of a `LossConf`: a scalar, or with reduction="none" one number a sample, whose mean is that scalar."""
    smoothing = conf["label_smoothing"]
    if conf["kind"] == "bce":
        return partial(binary_cross_entropy, num_classes=num_classes, label_smoothing=smoothing, reduction=reduction)
    if smoothing == 0 and reduction == "mean":
        return functional.cross_entropy
    return partial(functional.cross_entropy, label_smoothing=smoothing, reduction=reduction)


def binary_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    num_classes: int,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean over the classes of each class's binary cross-entropy; class indices count as one-hot targets.

    `label_smoothing` spreads that part of a sample's target mass evenly over all classes, as cross-entropy's does.
    """
    if targets.ndim == 1:
        targets = functional.one_hot(targets, num_classes)
    targets = targets.to(logits.dtype)
    if label_smoothing:
        targets = torch.lerp(targets, targets.mean(dim=1, keepdim=True), label_smoothing)
    if reduction == "mean":
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
