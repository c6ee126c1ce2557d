"""Training augmentation of uint8 images, whole batches at a time; a function of (seed, epoch, index) for each image."""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

from app.config.schema.augment import Recipe
from app.core import rng
from app.errors import ConfigError

Stage = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(images, indices, epoch) -> images: uint8 (n, channels, height, width) and the n keys of the images."""

Transform = Callable[[torch.Tensor], torch.Tensor]
"""One uint8 image (channels, height, width) -> one of the same size."""
Make = Callable[[Mapping[str, Any]], Any]
"""Gives the object of a mapping with `_target_`."""

FLIPS = {"flip": 3, "vflip": 2}
"""Name -> the axis that is reversed."""
TRANSFORMS = {
    "color": "ColorJitter",
    "randaugment": "RandAugment",
    "trivialaugment": "TrivialAugmentWide",
    "autoaugment": "AutoAugment",
    "augmix": "AugMix",
}
"""Our names for classes of torchvision.transforms.v2."""


class Augmenter:
    """Augments batches by any recipe; what a recipe needs is built when it comes into force."""

    def __init__(self, seed: int, crop_side: int | None, make: Make | None) -> None:
        self._seed, self._crop_side, self._make = seed, crop_side, make
        self._recipe: Recipe = []
        self._stage: Stage | None = None

    def __call__(self, images: torch.Tensor, indices: torch.Tensor, epoch: int, recipe: Recipe) -> torch.Tensor:
        if self._stage is None or recipe != self._recipe:
            self._recipe = recipe
            self._stage = build_augmentation(recipe, self._seed, self._crop_side, self._make)
        return self._stage(images, indices, epoch)


def build_augmentation(recipe: Recipe, seed: int, crop_side: int | None = None, make: Make | None = None) -> Stage:
    """Build all of `recipe` (as `parse_augment` gives it), one after the other.

    `resized_crop` gives images of `crop_side`; with None it is left out: the reader of image files has cropped them
    already, out of the whole picture. Classes of torchvision and of one's own are applied image by image.

    Raises:
        ConfigError: a class refuses its arguments.
    """
    stages: list[Stage] = []
    rows = 0
    for by_image, group in groupby(recipe, key=lambda entry: entry[0] not in BATCHED or "_target_" in entry[1]):
        if by_image:
            # Transforms in a row draw from one stream of random numbers; a second row must not draw the same ones.
            stages.append(each(rng.mix(seed, rows) if rows else seed, [transform(*entry, make) for entry in group]))
            rows += 1
            continue
        for name, arguments in group:
            if name in FLIPS:
                stages.append(flip(seed, name, **arguments))
            elif name != "resized_crop":
                stages.append(BATCHED[name](seed, **arguments))
            elif crop_side is not None:
                stages.append(resized_crop(seed, crop_side, **arguments))

    def augment(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        for stage in stages:
            images = stage(images, indices, epoch)
        return images

    return augment


def crop_of_files(recipe: Recipe) -> dict[str, Any] | None:
    """Arguments of our `resized_crop`: image files are cropped as they are decoded, out of the whole picture."""
    return next((given for name, given in recipe if name == "resized_crop" and "_target_" not in given), None)


def crop(seed: int, padding: int, fill: int) -> Stage:
    """Crop of the image's own size from the padded image (He et al., arXiv:1512.03385, section 4.2)."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        count, channels, height, width = images.shape
        padded = pad(images, (padding,) * 4, value=fill).contiguous()
        plane, row = padded.stride(1), padded.stride(2)
        top, left = (rng.uniforms(seed, epoch, indices, 2, "crop") * (2 * padding + 1)).long().unbind(1)
        first = torch.arange(count, device=images.device) * (channels * plane) + top * row + left
        planes = torch.arange(channels, device=images.device)[:, None] * plane
        starts = first[:, None, None] + planes + torch.arange(height, device=images.device) * row
        # Every run of `width` pixels in memory, as one row: a crop copies whole rows, twice as fast as pixel by pixel.
        runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
        return runs.index_select(0, starts.view(-1)).view(images.shape)

    return apply


def flip(seed: int, name: str, prob: float) -> Stage:
    """Flip: left and right, or up and down."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        chosen = _chosen(seed, epoch, indices, name, prob).to(torch.uint8).view(-1, 1, 1, 1)
        # images + (flipped - images) * chosen, modulo 256: torch.where takes three times as long for uint8 on a CPU
        return images.flip(FLIPS[name]).sub_(images).mul_(chosen).add_(images)

    return apply


def _chosen(seed: int, epoch: int, indices: torch.Tensor, name: str, prob: float) -> torch.Tensor:
    return rng.uniforms(seed, epoch, indices, 1, name) < prob


def erase(seed: int, prob: float, size: float) -> Stage:
    """Black out a square of `size` of the shorter side, anywhere inside (arXiv:1708.04552, 1708.04896)."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        height, width = images.shape[2:]
        side = max(1, round(size * min(height, width)))
        draws = rng.uniforms(seed, epoch, indices, 3, "erase")
        top = (draws[:, 0] * (height - side + 1)).long()[:, None]
        left = (draws[:, 1] * (width - side + 1)).long()[:, None]
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        inside_rows = (rows >= top) & (rows < top + side) & (draws[:, 2:] < prob)
        inside_columns = (columns >= left) & (columns < left + side)
        return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0)

    return apply


def rotate(seed: int, degrees: float) -> Stage:
    """Rotate by a uniform angle around the centre; bilinear, black outside."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        height, width = images.shape[2:]
        angle = (rng.uniforms(seed, epoch, indices, 1, "rotate")[:, 0] * 2 - 1) * (degrees * torch.pi / 180)
        cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        turn = [cosine, sine * (height / width), zero, -sine * (width / height), cosine, zero]
        return _sample(images, torch.stack(turn, 1).view(-1, 2, 3), height, width)

    return apply


def resized_crop(seed: int, side: int, scale: list[float], ratio: list[float]) -> Stage:
    """A random part of the image, resized (bilinear) to `side` pixels square; see `crop_parameters`."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        height, width = images.shape[2:]
        root_area, root_ratio, x, y = crop_parameters(seed, epoch, indices, scale, ratio).unbind(1)
        part_width = (root_area * root_ratio * (height / width) ** 0.5).clamp(max=1)
        part_height = (root_area / root_ratio * (width / height) ** 0.5).clamp(max=1)
        zero = torch.zeros_like(x)
        left, top = (2 * x - 1) * (1 - part_width), (2 * y - 1) * (1 - part_height)
        boxes = torch.stack([part_width, zero, left, zero, part_height, top], 1).view(-1, 2, 3)
        return _sample(images, boxes, side, side)

    return apply


def crop_parameters(
    seed: int, epoch: int, indices: torch.Tensor, scale: list[float], ratio: list[float]
) -> torch.Tensor:
    """(n, 4): root of the relative area, root of the aspect ratio, and place in [0, 1) along x and y of a random crop.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, as in torchvision's RandomResizedCrop; a side that
    would not fit is cut to the image's, where torchvision draws again up to ten times.
    """
    draws = rng.uniforms(seed, epoch, indices, 4, "resized_crop")
    low, high = torch.tensor(ratio).log().tolist()
    root_area = (draws[:, 0] * (scale[1] - scale[0]) + scale[0]).sqrt()
    root_ratio = ((draws[:, 1] * (high - low) + low) / 2).exp()
    return torch.stack([root_area, root_ratio, draws[:, 2], draws[:, 3]], 1)


def each(seed: int, transforms: list[Transform]) -> Stage:
    """Apply `transforms` image by image, the global generators seeded for each and put back afterwards."""

    def apply(images: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        done = []
        with rng.preserved():
            for image, index in zip(images.unbind(0), indices.tolist(), strict=True):
                rng.seed_sample(seed, epoch, index)
                for change in transforms:
                    image = change(image)
                done.append(image)
        if any(image.dtype != torch.uint8 or image.shape != done[0].shape for image in done):
            raise ConfigError(
                "data.augment: transforms must give back uint8 images of one size, got "
                + ", ".join(sorted({f"{image.dtype} {tuple(image.shape)}" for image in done}))
            )
        return torch.stack(done)

    return apply


def transform(name: str, arguments: dict[str, Any], make: Make | None) -> Transform:
    """The transform of a `_target_`, or of torchvision.transforms.v2 by our name or its own."""
    target = arguments.get("_target_", "torchvision")
    try:
        if target == "torchvision":
            from torchvision.transforms import v2

            made = getattr(v2, TRANSFORMS.get(name, name))(**arguments)
        else:
            assert make is not None
            made = make(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data.augment.{name}: {target} refuses the arguments {arguments}: {error}") from error

    def apply(image: torch.Tensor) -> torch.Tensor:
        try:
            changed = made(image)
        except Exception as error:
            found = f"{image.dtype} {tuple(image.shape)}"
            raise ConfigError(
                f"data.augment.{name}: {target} cannot apply it to an image of {found}: {error}"
            ) from error
        if not isinstance(changed, torch.Tensor):
            raise ConfigError(f"data.augment.{name} must give back a tensor, got {type(changed).__name__}")
        return changed

    return apply


BATCHED: dict[str, Callable[..., Stage]] = {
    "resized_crop": resized_crop,
    "crop": crop,
    "rotate": rotate,
    "flip": flip,
    "vflip": flip,
    "erase": erase,
}
"""Our augmentations of whole batches; all others are applied image by image."""


def _sample(images: torch.Tensor, transforms: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The images through affine `transforms` (n, 2, 3) from output to input coordinates in [-1, 1]."""
    grid = affine_grid(transforms, [len(images), images.shape[1], height, width], align_corners=False)
    sampled = grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().clamp_(0, 255).to(torch.uint8)
