import pytest
import torch

from app.data.order import Plan, evaluation_rounds


@pytest.mark.parametrize("size", [1, 7, 16, 33])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_together_take_every_sample_once(size: int, world: int, accumulate: int, drop_last: bool) -> None:
    order = torch.randperm(size)
    plans = [Plan(size, 4, accumulate, drop_last, rank, world) for rank in range(world)]
    shares = [list(plan.requests(order, 0, 3, [])) for plan in plans]
    assert len({len(share) for share in shares}) == 1
    seen = [i for share in shares for micro in share for i in micro.indices[: micro.size].tolist()]
    used = plans[0].steps * 4 * accumulate if drop_last else size
    assert sorted(seen) == sorted(order[:used].tolist())
    assert sum(plans[0].step_size(step) for step in range(plans[0].steps)) == used
    assert sum(plans[0].micro_count(step) for step in range(plans[0].steps)) == len(shares[0])
    for number, micros in enumerate(zip(*shares, strict=True)):
        members = {i for micro in micros for i in micro.indices[: micro.size].tolist()}
        assert members == set(order[number * 4 : number * 4 + 4].tolist())
        assert all(len(micro.indices) >= 1 and micro.epoch == 3 for micro in micros)


def test_start_is_the_same_as_skipping() -> None:
    order = torch.randperm(37)
    plan = Plan(37, 4, accumulate=2)
    whole = [micro.indices.tolist() for micro in plan.requests(order, 0, 3, [])]
    for start in range(plan.steps):
        assert [micro.indices.tolist() for micro in plan.requests(order, start, 3, [])] == whole[start * 2 :]


@pytest.mark.parametrize(
    ("size", "drop_last", "smallest"), [(64, False, 8), (65, False, 1), (67, False, 3), (65, True, 8)]
)
def test_smallest_batch(size: int, drop_last: bool, smallest: int) -> None:
    assert Plan(size, 8, drop_last=drop_last).smallest_batch == smallest


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 5, 23, 40])
def test_evaluation_counts_every_sample_once(size: int, world: int) -> None:
    rounds = [list(evaluation_rounds(size, 4, rank, world)) for rank in range(world)]
    assert len({len(parts) for parts in rounds}) == 1
    batches = [part for together in zip(*rounds, strict=True) for part in together if part is not None]
    assert [i for part in batches for i in part] == list(range(size))
    assert all(len(part) == 4 for part in batches[:-1])
