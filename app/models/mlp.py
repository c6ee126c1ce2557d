"""A multilayer perceptron."""

from collections.abc import Sequence

from torch import nn


class MLP(nn.Sequential):
    """Linear layers with ReLU and dropout between: (n, in_channels, image_size, image_size) -> (n, num_classes)."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.append(nn.Flatten())
        width = in_channels * image_size * image_size
        for size in hidden:
            self.append(nn.Linear(width, size))
            self.append(nn.ReLU(inplace=True))
            if dropout:
                self.append(nn.Dropout(dropout))
            width = size
        self.append(nn.Linear(width, num_classes))
