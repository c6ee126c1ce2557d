"""mixup and cutmix: two images of a batch in one, and their targets likewise.

The parameters of a batch are drawn from (seed, epoch, batch), the same on every rank; a rank pairs the images of its
own part of the batch, so which images meet depends on the number of ranks.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import one_hot

from app.config.schema.augment import Recipe
from app.core import rng

Mixing = Callable[[torch.Tensor, torch.Tensor, int, int], tuple[torch.Tensor, torch.Tensor]]
"""(images, targets, epoch, batch) -> images and soft targets (n, classes)."""


def build_mixing(recipe: Recipe, seed: int, num_classes: int) -> Mixing:
    """At most one of `recipe` (as `parse_batch_augment` gives it) per batch, each with its probability."""

    def mix(images: torch.Tensor, targets: torch.Tensor, epoch: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = one_hot(targets, num_classes).float() if targets.ndim == 1 else targets
        draws = np.random.Generator(np.random.PCG64(rng.mix(seed, "mix", epoch, batch)))
        choice = draws.random()
        for name, arguments in recipe:
            choice -= arguments["prob"]
            if choice < 0:
                weight = float(draws.beta(arguments["alpha"], arguments["alpha"]))
                if name == "mixup":
                    return mixup(images, targets, weight)
                height, width = images.shape[-2:]
                x, y = int(draws.integers(width)), int(draws.integers(height))
                return cutmix(images, targets, cut_box(weight, x, y, width, height))
        return images, targets

    return mix


def mixup(images: torch.Tensor, targets: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image times `weight` plus the one before it times the rest (Zhang et al., arXiv:1710.09412)."""
    return _blend(images, weight), _blend(targets, weight)


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, box: tuple[int, int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`box` (left, top, right, bottom) of each image from the one before it (Yun et al., arXiv:1905.04899)."""
    left, top, right, bottom = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    area = (right - left) * (bottom - top) / (images.shape[-1] * images.shape[-2])
    return mixed, _blend(targets, 1 - area)


def cut_box(weight: float, x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The box around (x, y) of 1 - `weight` of the area, cut at the borders."""
    half = 0.5 * (1 - weight) ** 0.5
    half_width, half_height = int(half * width), int(half * height)
    left, top = max(x - half_width, 0), max(y - half_height, 0)
    return left, top, min(x + half_width, width), min(y + half_height, height)


def _blend(values: torch.Tensor, weight: float) -> torch.Tensor:
    return values.roll(1, 0).mul_(1 - weight).add_(values.mul(weight))
