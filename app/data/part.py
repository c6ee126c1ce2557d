"""What the feed asks of one part of a data set."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from app.config.schema.augment import Recipe
from app.data.order import Micro


class Part(Protocol):
    """One part of a data set, in memory or behind loader workers."""

    @property
    def placement(self) -> str: ...
    def __len__(self) -> int: ...
    def train(
        self, micros: Iterator[Micro], epoch: int, recipe: Recipe
    ) -> Iterator[tuple[Micro, torch.Tensor, torch.Tensor]]: ...
    def evaluate(self, rounds: Iterator[range | None]) -> Iterator[tuple[range, torch.Tensor, torch.Tensor] | None]: ...
    def images(self, indices: Sequence[int]) -> torch.Tensor: ...
    def targets(self, indices: Sequence[int]) -> torch.Tensor: ...
    def close(self) -> None: ...
