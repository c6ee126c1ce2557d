"""Precision, recall and F1 from counts; torchmetrics' definitions (Sokolova and Lapalme, 2009).

torchmetrics itself takes some five seconds of CPU time to import, two to three times as long as torch; the tests hold
these to its results.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Counts(NamedTuple):
    """Of each class, int64 (classes,)."""

    correct: torch.Tensor
    """Samples of the class that were predicted to be of it."""
    predicted: torch.Tensor
    """Samples that were predicted to be of it."""
    support: torch.Tensor
    """Samples of it."""

    def scores(self) -> dict[str, torch.Tensor]:
        """precision, recall and f1 of each class, float64 (classes,); 0 where there is nothing to divide by."""
        return {
            "precision": _ratio(self.correct, self.predicted),
            "recall": _ratio(self.correct, self.support),
            "f1": _ratio(2 * self.correct, self.predicted + self.support),
        }


def count_classes(predictions: torch.Tensor, targets: torch.Tensor, classes: int) -> Counts:
    """The counts of (n,) predicted and true class indices."""
    return Counts(
        correct=torch.bincount(targets[predictions == targets], minlength=classes),
        predicted=torch.bincount(predictions, minlength=classes),
        support=torch.bincount(targets, minlength=classes),
    )


def count_labels(predictions: torch.Tensor, targets: torch.Tensor) -> Counts:
    """The counts of (n, classes) predicted and true labels, bool."""
    return Counts(correct=(predictions & targets).sum(0), predicted=predictions.sum(0), support=targets.sum(0))


def averaged(counts: Counts, average: str) -> dict[str, float]:
    """precision, recall and f1 over all classes.

    `macro`: the mean over the classes that occur among predictions or targets; `weighted`: by support; `micro`: of the
    summed counts.
    """
    if average == "micro":
        total = Counts(*(count.sum(dim=0, keepdim=True) for count in counts))
        return {name: float(value) for name, value in total.scores().items()}
    weights = (counts.predicted + counts.support > 0) if average == "macro" else counts.support
    total_weight = max(int(weights.sum()), 1)
    return {name: float((value * weights).sum() / total_weight) for name, value in counts.scores().items()}


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, part.double() / whole.clamp(min=1), 0.0)
