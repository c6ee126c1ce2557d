"""Training losses: factories that `loss._target_` names, and both means and single values of any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from app.errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(n, classes) logits and targets, (n,) class indices or (n, classes) floats, -> the loss."""


def cross_entropy(label_smoothing: float = 0.0, reduction: str = "mean") -> Loss:
    """Cross-entropy, of class indices or of soft targets."""
    if label_smoothing == 0 and reduction == "mean":
        return functional.cross_entropy
    return partial(functional.cross_entropy, label_smoothing=label_smoothing, reduction=reduction)


def bce(num_classes: int, label_smoothing: float = 0.0, reduction: str = "mean") -> Loss:
    """Binary cross-entropy of each class; class indices count as one-hot targets."""
    return partial(binary_cross_entropy, num_classes=num_classes, label_smoothing=label_smoothing, reduction=reduction)


def binary_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    num_classes: int,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean over the classes of each class's binary cross-entropy.

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


class Losses(NamedTuple):
    """One loss in the two forms that a run needs."""

    mean: Loss
    """A scalar, which training minimises."""
    each: Loss
    """(n,) one number per sample, which an evaluation averages."""
    per_sample: bool
    """False: it has no value per sample, so `each` repeats that of the batch."""


def pair(mean: Loss, each: Loss, *, num_classes: int, multi_label: bool, device: torch.device) -> Losses:
    """Both forms of a loss made with reduction="mean" and "none", or of the same object twice when it knows neither.

    Two blank samples show what it gives: a scalar, (n,), or (n, classes), of which the mean over the classes counts.

    Raises:
        ConfigError: it fails on them, or gives something else.
    """
    logits = torch.zeros(2, num_classes, device=device)
    targets = torch.zeros_like(logits) if multi_label else torch.zeros(2, dtype=torch.int64, device=device)
    try:
        found, single = mean(logits, targets), each(logits, targets)
    except Exception as error:
        raise ConfigError(f"loss: it failed on two samples: {type(error).__name__}: {error}") from error
    shape = tuple(single.shape)
    if shape not in ((), (2,), (2, num_classes)) or found.shape not in ((), single.shape):
        raise ConfigError(f"loss: it must give one number, or one per sample; for two samples got the shape {shape}")
    if not shape:
        return Losses(mean, lambda logits, targets: each(logits, targets).expand(len(logits)), per_sample=False)
    if len(shape) == 2:
        each = _mean_of_classes(each)
    if found.ndim:
        mean = _mean_of_samples(each)
    return Losses(mean, each, per_sample=True)


def _mean_of_classes(loss: Loss) -> Loss:
    return lambda logits, targets: loss(logits, targets).mean(dim=1)


def _mean_of_samples(loss: Loss) -> Loss:
    return lambda logits, targets: loss(logits, targets).mean()
