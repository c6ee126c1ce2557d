"""How an epoch's order of samples is cut into steps, micro-batches and ranks: pure functions of counters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from app.config.schema.augment import Recipe


class Request(NamedTuple):
    """What to read: one rank's part of a batch."""

    indices: torch.Tensor
    """(n,) int64, n >= 1: entries of the epoch's order (sample = entry modulo the data set's size), or samples."""
    size: int
    """Samples that count: n, or 0 for a rank that has none and computes on a dummy."""
    epoch: int | None = None
    """None: as evaluation sees them."""
    recipe: Recipe = []  # noqa: RUF012 - never changed
    """The augmentation of an epoch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An epoch of `size` samples: micro-batches of `batch_size` over all ranks, `accumulate` of them a step.

    Rank r takes every world-th sample of a micro-batch, from the r-th on; the last micro-batch may be shorter.
    """

    size: int
    batch_size: int
    accumulate: int = 1
    drop_last: bool = False
    rank: int = 0
    world: int = 1

    @property
    def step_samples(self) -> int:
        """Samples of a whole step, over all ranks."""
        return self.batch_size * self.accumulate

    @property
    def steps(self) -> int:
        """Steps of an epoch; 0 with `drop_last` and too few samples."""
        return self.size // self.step_samples if self.drop_last else -(-self.size // self.step_samples)

    @property
    def smallest_batch(self) -> int:
        """Images of the smallest forward pass on any rank."""
        rest = 0 if self.drop_last else self.size % self.batch_size
        return max(1, (rest or self.batch_size) // self.world)

    def step_size(self, step: int) -> int:
        """Samples of the `step`-th step over all ranks."""
        return min(self.step_samples, self.size - step * self.step_samples)

    def micro_count(self, step: int) -> int:
        """Micro-batches of the `step`-th step."""
        return -(-self.step_size(step) // self.batch_size)

    def requests(self, order: torch.Tensor, start: int, epoch: int, recipe: Recipe) -> Iterator[Request]:
        """This rank's part of each micro-batch from step `start` on; `order` holds the epoch's `size` entries."""
        begin, end = start * self.step_samples, min(self.size, self.steps * self.step_samples)
        rest = order[begin:end]
        for whole in torch.split(rest, self.batch_size) if len(rest) else ():
            mine = whole[self.rank :: self.world] if self.world > 1 else whole
            # A rank without samples takes the first one: its forward and backward keep the ranks in step.
            yield Request(mine if len(mine) else whole[:1], len(mine), epoch, recipe)


def evaluation_rounds(size: int, batch_size: int, rank: int, world: int) -> Iterator[range | None]:
    """This rank's batches of an evaluation as ranges of samples; None where the last round has none for it.

    Batch b goes to rank b % world, so what is in a batch does not depend on the number of ranks.
    """
    batches = -(-size // batch_size)
    for first in range(0, batches, world):
        begin = (first + rank) * batch_size
        yield range(begin, min(begin + batch_size, size)) if begin < size else None
