"""From uint8 pixels to what a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Normalize:
    """Moves images to the device and makes uint8 ones float: (pixel / 255 - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, pin_memory: bool) -> None:
        self._device = device
        self._pin = pin_memory and device.type == "cuda"
        self.mean = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        scale = (1 / (255 * self.std)).float()
        shift = (-self.mean / self.std).float()
        # A number instead of a tensor where it can be: twice as fast for small grey images.
        self._scale = float(scale) if scale.numel() == 1 else scale.to(device)
        self._shift = float(shift) if shift.numel() == 1 else shift.to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) float32 on the device; images that are float already are only moved."""
        images = self.move(images)
        if images.is_floating_point():
            return images
        return images.to(torch.float32).mul_(self._scale).add_(self._shift)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; through pinned memory, so that the copy does not wait, where configured."""
        if self._pin and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def undo(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 pixels of normalised images, on the CPU."""
        pixels = (images.cpu().double() * self.std + self.mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8)
