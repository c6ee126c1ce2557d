"""LeNet-5."""

import torch
from torch import nn

from app.errors import ConfigError


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling; 28x28 images are padded to its 32x32, as in the paper."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, in_channels, 28 or 32, same) -> (n, num_classes) logits; other sizes raise ConfigError."""
        height, width = images.shape[-2:]
        if (height, width) == (28, 28):
            images = nn.functional.pad(images, (2, 2, 2, 2))
        elif (height, width) != (32, 32):
            raise ConfigError(
                f"model=lenet5 takes 28x28 or 32x32 images, got {height}x{width}: set data.image_size, "
                "or choose another model (small_cnn takes any size from 8x8 up)"
            )
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits
