"""A small convolutional network."""

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of `width`, 2 and 4 times `width` channels, a global max-pool and a linear layer.

    For speed the first two are pooled before their batch norm and ReLU, which then see a quarter of the pixels, and the
    weights are held channels-last, which a CPU convolves in two thirds of the time too.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(in_channels, width), _block(width, 2 * width), _block(2 * width, 4 * width, pool=False)
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, num_classes)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, in_channels, height, width), both >= 4 -> (n, num_classes) logits."""
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def _block(in_channels: int, out_channels: int, pool: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
