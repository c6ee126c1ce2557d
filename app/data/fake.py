"""Random images whose classes can be learned, for tests and benchmarks."""

import torch

from app.core import rng
from app.data.source import ImageTensor, Splits


def fake(
    size: int = 1024, val_size: int = 256, num_classes: int = 10, channels: int = 3, image_size: int | None = 32
) -> Splits:
    """Noise around one random, blocky pattern per class; the same images at every call."""
    side = image_size or 32
    generator = rng.generator("fake", num_classes, channels, side)
    coarse = torch.randn(num_classes, channels, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (side, side), mode="nearest")

    def part(count: int) -> ImageTensor:
        targets = torch.arange(count) % num_classes
        noise = torch.randn(count, channels, side, side, generator=generator)
        images = ((patterns[targets] + noise) * 40 + 128).clamp_(0, 255).to(torch.uint8)
        return ImageTensor(images, targets)

    return Splits(part(size), part(val_size), [f"class_{i}" for i in range(num_classes)])
