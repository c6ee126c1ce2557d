"""Evaluation metrics against scikit-learn, for every split into batches and ranks.

scikit-learn is imported where it is used: the second process of a test needs none of it.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from app.core.ranks import World
from app.errors import ConfigError, DataError
from app.metrics.losses import bce, cross_entropy
from app.metrics.metrics import Evaluation, Metrics

ALONE = World(torch.device("cpu"))
SIZE, CLASSES = 103, 7
LOSS = cross_entropy(reduction="none")
NAMES = [f"class {number}" for number in range(CLASSES)]


def conf(**changes: Any) -> dict[str, Any]:
    defaults = {"topk": [1, 3], "average": ["macro", "micro"], "per_class": True, "confusion": True, "threshold": 0.5}
    return defaults | changes


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and class indices; class 6 never occurs."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(CLASSES - 1, (SIZE,), generator=generator)
    logits = torch.randn(SIZE, CLASSES, generator=generator)
    return logits + torch.nn.functional.one_hot(targets, CLASSES), targets


def evaluate(
    metrics: Metrics, logits: torch.Tensor, targets: torch.Tensor, batch_size: int = 10, world: World = ALONE
) -> Evaluation:
    """Feeds this rank's batches, as the data feed deals them out."""
    metrics.start(len(logits))
    for number, indices in enumerate(torch.arange(len(logits)).split(batch_size)):
        if number % world.size == world.rank:
            metrics.update(logits[indices], targets[indices], indices)
    return metrics.compute(world)


def test_equal_to_scikit_learn() -> None:
    from sklearn import metrics as sk

    logits, targets = data()
    result = evaluate(Metrics(conf(), NAMES, multi_label=False, loss=LOSS), logits, targets)
    chances, best = logits.double().softmax(1), logits.argmax(1)
    labels = range(CLASSES)
    assert result.metrics["top1"] == sk.accuracy_score(targets, best)
    assert result.metrics["top3"] == sk.top_k_accuracy_score(targets, logits, k=3, labels=labels)
    assert result.metrics["loss"] == pytest.approx(sk.log_loss(targets, chances, labels=labels), rel=1e-6)
    for average, suffix in (("macro", ""), ("micro", "_micro")):
        expected = sk.precision_recall_fscore_support(targets, best, average=average, zero_division=0)[:3]
        found = [result.metrics[f"{name}{suffix}"] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected, abs=1e-12)
    assert result.confusion is not None
    assert result.confusion.tolist() == sk.confusion_matrix(targets, best, labels=labels).tolist()
    assert [row["class"] for row in result.per_class] == NAMES
    assert [row["support"] for row in result.per_class] == torch.bincount(targets, minlength=CLASSES).tolist()
    assert result.predictions[:, 0].equal(best)
    assert torch.equal(result.scores, logits.softmax(1).max(1).values)
    assert result.targets.equal(targets)


def test_the_mean_loss_is_summed_without_rounding() -> None:
    """One loss of 2^24 swallows the others where they are added in float32."""
    logits, targets = data()
    logits[0, targets[0]] = -(2.0**24)
    result = evaluate(Metrics(conf(), NAMES, multi_label=False, loss=LOSS), logits, targets)
    exact = math.fsum(result.losses.double().tolist()) / SIZE
    assert result.metrics["loss"] == exact
    assert float(result.losses.mean()) != exact, "otherwise this shows nothing"


def test_batch_size_and_order_of_batches_change_nothing() -> None:
    logits, targets = data()
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=cross_entropy(0.1, "none"))
    first = evaluate(metrics, logits, targets, batch_size=10)
    metrics.start(SIZE)
    for indices in reversed(torch.arange(SIZE).split(10)):
        metrics.update(logits[indices], targets[indices], indices)
    second = metrics.compute(ALONE)
    assert second.metrics == first.metrics
    assert second.losses.equal(first.losses)
    assert evaluate(metrics, logits, targets, batch_size=SIZE).metrics == pytest.approx(first.metrics, rel=1e-6)


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    logits, targets = data()
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS)
    # Batches of 200: nothing is left for rank 1.
    results = [
        evaluate(metrics, logits, targets, batch_size, World(torch.device("cpu"), rank, 2)) for batch_size in (10, 200)
    ]
    torch.save([vars(result) for result in results], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    spawn(run_rank, (tmp_path,), nprocs=2)
    logits, targets = data()
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS)
    for rank in range(2):
        for batch_size, found in zip((10, 200), torch.load(tmp_path / f"{rank}.pt"), strict=True):
            alone = evaluate(metrics, logits, targets, batch_size)
            assert found["metrics"] == alone.metrics
            for name in ("losses", "predictions", "scores", "targets", "confusion"):
                assert found[name].equal(getattr(alone, name)), name


def test_multi_label_equal_to_scikit_learn() -> None:
    from sklearn import metrics as sk

    logits, _ = data()
    targets = (torch.rand(SIZE, CLASSES, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    metrics = Metrics(conf(threshold=0.6), NAMES, multi_label=True, loss=bce(CLASSES, reduction="none"))
    result = evaluate(metrics, logits, targets)
    chances = logits.sigmoid()
    expected = sk.precision_recall_fscore_support(targets, chances >= 0.6, average="macro", zero_division=0)[:3]
    assert [result.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-12)
    assert result.metrics["top1"] == targets[torch.arange(SIZE), logits.argmax(1)].double().mean().item()
    per_class = [sk.log_loss(targets[:, c], chances[:, c].double()) for c in range(CLASSES)]
    assert result.metrics["loss"] == pytest.approx(sum(per_class) / CLASSES, rel=1e-6)
    assert result.targets.equal(targets)
    assert result.confusion is None


def test_soft_targets_count_as_their_greatest_class() -> None:
    logits, targets = data()
    soft = torch.nn.functional.one_hot(targets, CLASSES) * 0.8 + 0.2 / CLASSES
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS)
    hard, result = evaluate(metrics, logits, targets).metrics, evaluate(metrics, logits, soft).metrics
    assert result["loss"] != hard["loss"]
    assert result | {"loss": 0} == hard | {"loss": 0}


def test_tables_are_left_out_when_not_configured() -> None:
    metrics = Metrics(conf(topk=[1], per_class=False, confusion=False), NAMES, multi_label=False, loss=LOSS)
    result = evaluate(metrics, *data())
    assert result.per_class == []
    assert result.confusion is None
    assert result.predictions.shape == (SIZE, 1)


def test_a_nonfinite_loss_is_reported() -> None:
    logits, targets = data()
    logits[5] = math.nan
    result = evaluate(Metrics(conf(), NAMES, multi_label=False, loss=LOSS), logits, targets)
    assert math.isnan(result.metrics["loss"])


def test_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.topk must be at most the number of classes, 7, got 8"):
        Metrics(conf(topk=[1, 8]), NAMES, multi_label=False, loss=LOSS)
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS)
    with pytest.raises(DataError, match="split is empty"):
        metrics.start(0)


def test_each_sample_counts_exactly_once() -> None:
    logits, targets = data()
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS)
    for left_out, word in (([4], "0 times"), ([], "2 times")):
        metrics.start(SIZE)
        kept = torch.tensor([index for index in range(SIZE) if index not in left_out])
        metrics.update(logits[kept], targets[kept], kept)
        if not left_out:
            metrics.update(logits[9:12], targets[9:12], torch.arange(9, 12))
        with pytest.raises(RuntimeError, match=word):
            metrics.compute(ALONE)


def test_extra_metrics_from_torchmetrics() -> None:
    from sklearn import metrics as sk

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchmetrics
    logits, targets = data()
    extra = {"kappa": torchmetrics.CohenKappa(task="multiclass", num_classes=CLASSES)}
    metrics = Metrics(conf(), NAMES, multi_label=False, loss=LOSS, extra=extra)
    for _ in range(2):
        found = evaluate(metrics, logits, targets).metrics["kappa"]
        assert found == pytest.approx(sk.cohen_kappa_score(targets, logits.argmax(1)), abs=1e-6)


def test_extra_metrics_that_cannot_be_used_show_before_training() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.classification import MulticlassAccuracy
    vector = {"each": MulticlassAccuracy(num_classes=CLASSES, average=None)}
    with pytest.raises(ConfigError, match=r"metrics\.extra\.each: .* must give one number, got \(7,\)"):
        Metrics(conf(), NAMES, multi_label=False, loss=LOSS, extra=vector)
    narrow = {"few": MulticlassAccuracy(num_classes=3)}
    with pytest.raises(ConfigError, match=r"metrics\.extra\.few: MulticlassAccuracy failed"):
        Metrics(conf(), NAMES, multi_label=False, loss=LOSS, extra=narrow)
