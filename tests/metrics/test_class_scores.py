"""Precision, recall and F1 against scikit-learn and torchmetrics."""

import warnings

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from app.metrics.class_scores import averaged, count_classes, count_labels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.functional import classification


def sample(classes: int, present: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of the first `present` classes only, predictions of one more: some classes occur nowhere."""
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(present, (200,), generator=generator)
    wrong = torch.rand(200, generator=generator) < 0.4
    return torch.where(wrong, torch.randint(present + 1, (200,), generator=generator), targets), targets


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize(("classes", "present"), [(3, 2), (10, 6), (100, 99)])
def test_averages_equal_both_libraries(average: str, classes: int, present: int) -> None:
    predictions, targets = sample(classes, present)
    ours = averaged(count_classes(predictions, targets, classes), average)
    theirs = precision_recall_fscore_support(targets, predictions, average=average, zero_division=0)
    assert list(ours.values()) == pytest.approx(theirs[:3], abs=1e-12)
    for name, function in (("precision", "precision"), ("recall", "recall"), ("f1", "f1_score")):
        value = getattr(classification, f"multiclass_{function}")(predictions, targets, classes, average=average)
        assert ours[name] == pytest.approx(value.item(), abs=1e-6)


def test_scores_of_each_class_equal_scikit_learn() -> None:
    predictions, targets = sample(10, 6)
    counts = count_classes(predictions, targets, 10)
    theirs = precision_recall_fscore_support(targets, predictions, labels=range(10), zero_division=0)
    for ours, values in zip((*counts.scores().values(), counts.support), theirs, strict=True):
        assert ours.tolist() == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_multi_label_equals_scikit_learn(average: str) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(50, 6, generator=generator) < 0.3
    predictions = targets ^ (torch.rand(50, 6, generator=generator) < 0.2)
    ours = averaged(count_labels(predictions, targets), average)
    theirs = precision_recall_fscore_support(targets, predictions, average=average, zero_division=0)
    assert list(ours.values()) == pytest.approx(theirs[:3], abs=1e-12)


def test_no_hit_at_all_is_zero() -> None:
    counts = count_classes(torch.tensor([0, 0]), torch.tensor([1, 1]), 3)
    for average in ("macro", "micro", "weighted"):
        assert averaged(counts, average) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
