"""Random numbers as pure functions of counters, so that no generator state ever needs saving.

Every draw is keyed by what it is for: the order of samples by (seed, epoch), the augmentation of a sample by
(seed, epoch, index), everything inside a step (dropout) by (seed, step, rank).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def mix(*counters: int | str) -> int:
    """A seed of 63 bits from any counters: the same for the same counters, unrelated for others."""
    return int.from_bytes(blake2b(repr(counters).encode(), digest_size=8).digest(), "little") >> 1


def generator(*counters: int | str) -> torch.Generator:
    """A CPU generator of its own, seeded with `mix(*counters)`."""
    return torch.Generator().manual_seed(mix(*counters))


def step_seeder(seed: int, rank: int, device: torch.device) -> Callable[[int], None]:
    """A function that seeds every global generator for one step: torch's on the CPU and `device`, numpy's, Python's.

    It addresses the generators directly: `torch.manual_seed` takes 100 µs, these four together about 8.
    """
    accelerator: torch.Generator | None = None
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        accelerator = torch.cuda.default_generators[device.index or 0]
    elif device.type == "mps":
        accelerator = torch.mps._get_default_mps_generator()

    def seed_step(step: int) -> None:
        value = mix(seed, "step", step, rank)
        _seed_host(value)
        if accelerator is not None:
            accelerator.manual_seed(value)

    return seed_step


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Seeds the global generators for the augmentation of one sample, in a loader worker or in the main process."""
    _seed_host(mix(seed, "sample", epoch, index))


def seed_building(seed: int) -> None:
    """Seeds what initialises the weights, on every device: the same on every rank."""
    value = mix(seed, "build")
    torch.manual_seed(value)
    _seed_host(value)


def _seed_host(value: int) -> None:
    torch.default_generator.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@contextmanager
def preserved() -> Iterator[None]:
    """Puts the CPU generators of torch, numpy and Python back on exit: for code that draws outside a step."""
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def order(size: int, seed: int, epoch: int, shuffle: bool = True) -> torch.Tensor:
    """The order of an epoch's samples: an int64 permutation of `size` indices, the same on every rank."""
    if not shuffle:
        return torch.arange(size)
    return torch.randperm(size, generator=generator(seed, "order", epoch))


def uniforms(seed: int, epoch: int, indices: torch.Tensor, columns: int, stream: str = "augment") -> torch.Tensor:
    """Uniform numbers in [0, 1) of shape (len(indices), columns), a function of (seed, epoch, index, column) alone.

    SplitMix64 (Steele, Lea and Flood, 2014) on the key of each element, in int64 arithmetic that wraps around; so the
    numbers of a sample depend on nothing else in its batch, and are the same on every device and rank.
    """
    key = mix(seed, stream, epoch)
    grid = indices.to(torch.int64)[:, None] * 0x1000193 + torch.arange(columns, device=indices.device)
    state = grid * -7046029254386353131 + key  # 0x9E3779B97F4A7C15, the golden-ratio increment
    state = (state ^ _shift(state, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    state = (state ^ _shift(state, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    state = state ^ _shift(state, 31)
    return _shift(state, 40).to(torch.float32) * 2.0**-24


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
