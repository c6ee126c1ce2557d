from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from app.core.state import DataFeed, StepBatch
from app.data.digits import digits
from app.data.feed import Feed
from app.data.source import ImageTensor, Splits
from app.errors import ConfigError, DataError

FeedOf = Callable[..., Feed]
AUGMENT = {"crop": {"padding": 2}, "flip": {}, "vflip": {}, "rotate": {}, "erase": {"prob": 0.7}}
PER_SAMPLE = ["flip", "color", "randaugment"]


def by_index(steps: Iterable[StepBatch]) -> dict[int, torch.Tensor]:
    images: dict[int, torch.Tensor] = {}
    for step in steps:
        for batch in step.micros:
            for image, index in zip(batch.images[: batch.size], batch.indices.tolist(), strict=False):
                assert index not in images
                images[index] = image
    return images


def same(left: dict[int, torch.Tensor], right: dict[int, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[i], right[i]) for i in left)


def test_is_a_data_feed(feed_of: FeedOf, small: Splits) -> None:
    feed: DataFeed = feed_of(small)
    assert (feed.train_size, feed.channels, feed.image_size, feed.steps_per_epoch) == (50, 3, 12, 1)
    assert feed.eval_size("val") == feed.eval_size("test") == 23
    assert not feed.multi_label


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_do_not_depend_on_batch_size_accumulation_or_ranks(
    feed_of: FeedOf, small: Splits, in_memory: bool
) -> None:
    keys: dict[str, Any] = {"augment": AUGMENT, "in_memory": in_memory}
    reference = by_index(feed_of(small, batch_size=50, **keys).train(3, 0))
    assert len(reference) == 50
    assert same(by_index(feed_of(small, batch_size=7, **keys).train(3, 0)), reference)
    assert same(by_index(feed_of(small, batch_size=4, accumulate=3, **keys).train(3, 0)), reference)
    parts = [by_index(feed_of(small, rank=rank, world=3, batch_size=7, **keys).train(3, 0)) for rank in range(3)]
    assert same(parts[0] | parts[1] | parts[2], reference)
    other_epoch = by_index(feed_of(small, batch_size=50, **keys).train(4, 0))
    assert not any(torch.equal(other_epoch[i], reference[i]) for i in reference)


@pytest.mark.parametrize("augment", [AUGMENT, PER_SAMPLE, ["resized_crop", "flip"]])
def test_result_does_not_depend_on_workers(feed_of: FeedOf, small: Splits, augment: Any) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    feeds = [feed_of(small, augment=augment, batch_size=8, in_memory=False, num_workers=n) for n in (0, 1, 3)]
    runs = [[list(feed.train(epoch, 0)) for epoch in (0, 1)] for feed in feeds]
    for run in runs[1:]:
        for left, right in zip(runs[0], run, strict=True):
            for one, other in zip(left, right, strict=True):
                assert torch.equal(one.micros[0].images, other.micros[0].images)
                assert torch.equal(one.micros[0].targets, other.micros[0].targets)
                assert torch.equal(one.micros[0].indices, other.micros[0].indices)
    assert torch.equal(torch.get_rng_state(), state), "reading drew from the global generator"


@pytest.mark.parametrize("augment", [AUGMENT, PER_SAMPLE])
def test_memory_and_loader_give_the_same(feed_of: FeedOf, small: Splits, augment: Any) -> None:
    held, read = (feed_of(small, augment=augment, batch_size=8, in_memory=flag) for flag in (True, False))
    assert same(by_index(held.train(1, 0)), by_index(read.train(1, 0)))
    for left, right in zip(held.evaluate("val"), read.evaluate("val"), strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left.images, right.images)


@pytest.mark.parametrize("keys", [{}, {"in_memory": False, "num_workers": 2}])
def test_start_is_the_same_as_skipping(feed_of: FeedOf, small: Splits, keys: dict[str, Any]) -> None:
    feed = feed_of(small, augment=AUGMENT, batch_augment={"mixup": {"prob": 1}}, batch_size=4, accumulate=3, **keys)
    whole = list(feed.train(2, 0))
    assert [step.size for step in whole] == [12, 12, 12, 12, 2]
    for start in range(feed.steps_per_epoch + 1):
        rest = list(feed.train(2, start))
        assert len(rest) == len(whole) - start
        for left, right in zip(whole[start:], rest, strict=True):
            assert all(torch.equal(a.images, b.images) for a, b in zip(left.micros, right.micros, strict=True))
            assert all(torch.equal(a.targets, b.targets) for a, b in zip(left.micros, right.micros, strict=True))


def test_a_read_inside_another_does_not_disturb_it(feed_of: FeedOf, small: Splits) -> None:
    feed = feed_of(small, augment=["flip"], batch_size=8, in_memory=False, num_workers=1)
    alone = [step.micros[0].indices.tolist() for step in feed.train(0, 0)]
    outer = feed.train(0, 0)
    seen = [next(outer).micros[0].indices.tolist()]
    next(feed.train(5, 0))
    list(feed.evaluate("val"))
    seen += [step.micros[0].indices.tolist() for step in outer]
    assert seen == alone


def test_a_rank_without_samples_gets_a_dummy(feed_of: FeedOf, small: Splits) -> None:
    # 50 = 12 batches of 4 and 2 samples: the last batch has none for the third rank
    last = [list(feed_of(small, rank=rank, world=3, batch_size=4).train(0, 0))[-1] for rank in range(3)]
    assert [step.micros[0].size for step in last] == [1, 1, 0]
    assert all(len(step.micros[0].images) == 1 and step.size == 2 for step in last)


def test_evaluation_over_ranks_has_the_batches_of_one(feed_of: FeedOf, small: Splits) -> None:
    alone = list(feed_of(small, eval_batch_size=5).evaluate("val"))
    ranks = [list(feed_of(small, rank=rank, world=3, eval_batch_size=5).evaluate("val")) for rank in range(3)]
    together = [batch for parts in zip(*ranks, strict=True) for batch in parts]
    assert together[-1] is None
    assert len(together) == 6
    for left, right in zip(alone, together, strict=False):
        assert left is not None
        assert right is not None
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.indices, right.indices)


def test_evaluation_images_are_normalised_and_not_augmented(feed_of: FeedOf, small: Splits) -> None:
    assert isinstance(small.val, ImageTensor)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    feed = feed_of(small, augment=AUGMENT, mean=mean, std=std)
    batch = next(iter(feed.evaluate("val")))
    assert batch is not None
    expected = (small.val.images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(batch.images, expected)
    assert torch.equal(feed.sample_images("val", [4, 2]), small.val.images[[4, 2]])


def test_repeats_show_an_image_several_times_differently(feed_of: FeedOf, small: Splits) -> None:
    feed = feed_of(small, augment=AUGMENT, repeats=3, batch_size=150)
    batch = next(iter(feed.train(0, 0))).micros[0]
    assert batch.indices.bincount().tolist() == [3] * 50
    copies = batch.images[batch.indices == 7]
    assert not torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[1], copies[2])


def test_shuffle(feed_of: FeedOf, small: Splits) -> None:
    ordered = feed_of(small, shuffle=False, batch_size=50)
    assert next(iter(ordered.train(0, 0))).micros[0].indices.tolist() == list(range(50))
    orders = [
        next(iter(feed_of(small, seed=s, batch_size=50).train(e, 0))).micros[0].indices.tolist()
        for s in (0, 1)
        for e in (0, 1)
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_limits_keep_all_classes(feed_of: FeedOf) -> None:
    feed = feed_of(digits(), limit_train=100, limit_val=40)
    assert (feed.train_size, feed.eval_size("val")) == (100, 40)


def test_recipe_changes_with_the_next_epoch(feed_of: FeedOf, small: Splits) -> None:
    for keys in ({}, {"in_memory": False, "num_workers": 1}):
        feed = feed_of(small, augment=AUGMENT, batch_size=10, **keys)
        before = by_index(feed.train(0, 0))
        running = feed.train(0, 0)
        steps = [next(running)]
        feed.set_recipe(None, {"mixup": {}})
        assert same(by_index([*steps, *running]), before)
        plain = next(iter(feed.train(0, 0))).micros[0]
        assert plain.targets.shape == (10, 3)
        feed.set_recipe(AUGMENT, None)
        assert same(by_index(feed.train(0, 0)), before)


def test_image_size_resizes(feed_of: FeedOf, small: Splits) -> None:
    feed = feed_of(small, image_size=8, augment=["resized_crop"])
    assert feed.image_size == 8
    assert next(iter(feed.train(0, 0))).micros[0].images.shape == (50, 3, 8, 8)
    assert feed.sample_images("val", [0]).shape == (1, 3, 8, 8)


def test_multi_label(feed_of: FeedOf, small: Splits) -> None:
    for part in (small.train, small.val):
        assert isinstance(part, ImageTensor)
        part.targets = torch.rand(len(part), 3).round()
    feed = feed_of(small)
    assert feed.multi_label
    assert next(iter(feed.train(0, 0))).micros[0].targets.shape == (50, 3)


def refusal(feed_of: FeedOf, splits: Splits, error: type[Exception], **keys: Any) -> str:
    with pytest.raises(error) as caught:
        feed_of(splits, **keys)
    return str(caught.value)


def test_drop_last_with_too_few_samples_is_refused(feed_of: FeedOf, small: Splits) -> None:
    assert refusal(feed_of, small, ConfigError, drop_last=True, batch_size=30, accumulate=2) == (
        "data.drop_last=true leaves 0 steps an epoch: 50 training samples are fewer than the 60 of a step "
        "(data.batch_size=30 x train.accumulate=2); lower data.batch_size or set data.drop_last=false"
    )


def test_more_ranks_than_samples_in_a_batch_is_refused(feed_of: FeedOf, small: Splits) -> None:
    message = refusal(feed_of, small, ConfigError, batch_size=2, world=3)
    assert message == "data.batch_size=2 must be at least the number of processes, 3"


@pytest.mark.parametrize("label", [3, -1, -100])
def test_label_out_of_range_is_refused(feed_of: FeedOf, small: Splits, label: int) -> None:
    assert isinstance(small.val, ImageTensor)
    small.val.targets[5] = label
    assert refusal(feed_of, small, DataError) == (
        f"data: val: sample 5 of ImageTensor has label {label}, but there are 3 classes: 0 to 2"
    )


def test_a_transform_that_fails_is_refused_before_training(feed_of: FeedOf, small: Splits) -> None:
    for keys in ({}, {"in_memory": False, "num_workers": 1}):
        message = refusal(feed_of, small, ConfigError, augment=["ToPILImage"], **keys)
        assert message == "data.augment.ToPILImage must give back a tensor, got Image"


def test_wrong_statistics_are_refused(feed_of: FeedOf, small: Splits) -> None:
    message = refusal(feed_of, small, ConfigError, mean=[0.1, 0.2])
    assert message == "data.mean must have 1 or 3 numbers, one per channel, got [0.1, 0.2]"
    assert refusal(feed_of, small, ConfigError, std=[0.0]) == "data.std must be > 0, got [0.0]"
