import random

import numpy as np
import torch

from app.core import rng


def test_mix_depends_on_every_counter_and_fits_a_seed() -> None:
    seeds = {rng.mix(seed, stream, step) for seed in range(4) for stream in ("a", "b") for step in range(50)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_step_seeder_restores_all_generators() -> None:
    seed_step = rng.step_seeder(7, 0, torch.device("cpu"))

    def draw(step: int) -> tuple[float, float, float]:
        seed_step(step)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    first = draw(3)
    assert draw(4) != first
    torch.rand(100)
    assert draw(3) == first
    rng.step_seeder(7, 1, torch.device("cpu"))(3)
    assert torch.rand(()).item() != first[0]


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    order = rng.order(100, seed=1, epoch=2)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, rng.order(100, seed=1, epoch=2))
    assert not torch.equal(order, rng.order(100, seed=1, epoch=3))
    assert rng.order(5, seed=1, epoch=0, shuffle=False).tolist() == [0, 1, 2, 3, 4]


def test_uniforms_belong_to_the_sample_not_to_the_batch() -> None:
    indices = torch.randperm(1000)
    together = rng.uniforms(5, 1, indices, 3)
    apart = torch.cat([rng.uniforms(5, 1, part, 3) for part in indices.split(7)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, rng.uniforms(5, 2, indices, 3))


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = rng.uniforms(0, 0, torch.arange(200_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.stack([torch.histc(column, 64, 0, 1) for column in numbers.T])
    expected = 200_000 / 64
    chi_squared = ((counts - expected) ** 2 / expected).sum(1)  # 63 degrees of freedom: mean 63, deviation 11.2
    assert chi_squared.max() < 63 + 5 * 11.2
    assert (torch.corrcoef(numbers.T) - torch.eye(4)).abs().max() < 0.01
    assert torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1].abs() < 0.01


def test_preserved_puts_the_generators_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with rng.preserved():
        torch.rand(10)
        random.random()
    assert torch.equal(torch.rand(3), expected)
