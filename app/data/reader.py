"""What the feed asks of the two readers: images in memory, and images behind loader workers."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from app.core.state import Batch
from app.data.order import Request


class Reader(Protocol):
    """Reads one part of a data set."""

    @property
    def placement(self) -> str:
        """Where the images come from, in words."""
        ...

    def read(self, requests: Iterator[Request]) -> Iterator[Batch]:
        """The batch of each request, in order: augmented where it has an epoch, normalised, on the device.

        Raises:
            DataError: an unreadable sample, a dead or silent worker.
        """
        ...

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """(n, channels, height, width) uint8 on the CPU: samples as evaluation sees them, before normalisation."""
        ...

    def close(self) -> None:
        """End the workers, if there are any."""
        ...
