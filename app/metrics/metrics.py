"""What an evaluation measures: exact, the same for every number of ranks, and cheap while it runs.

While batches come in, a few numbers a sample stay on the device. At the end all ranks hold these of all samples, in the
order of the data set, and compute everything from them: counts are integers, the mean loss is correctly rounded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from app.core.ranks import World
from app.errors import ConfigError, DataError
from app.metrics.class_scores import Counts, averaged, count_classes, count_labels
from app.metrics.losses import Loss
from app.metrics.names import average_suffixes


@dataclass
class Evaluation:
    """One finished evaluation. Tensors are on the CPU, in the order of the data set."""

    metrics: dict[str, float]
    """By quantity: loss, top1, precision, …"""
    losses: torch.Tensor
    """(n,) float32: each sample's loss."""
    predictions: torch.Tensor
    """(n, greatest k) int64: the classes of the highest scores, best first."""
    scores: torch.Tensor
    """(n,) float32: the best class's probability."""
    targets: torch.Tensor
    """(n,) int64 class indices, or (n, classes) float for multi-label data."""
    classes: Sequence[str]
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """Rows of class, precision, recall, f1 and support; empty when not configured."""
    confusion: torch.Tensor | None = None
    """(classes, classes) int64, rows are the truth; None when not configured, and for multi-label data."""


class Metrics:
    """Computes the metrics of a `MetricsConf` given as plain values.

    `loss` gives one number per sample; `extra` holds modules of torchmetrics by name. These get all probabilities at
    once, in order, so that they too do not depend on the number of ranks; it takes n x classes floats of memory.

    Raises:
        ConfigError: a k of topk is greater than the number of classes, or one of `extra` cannot be used.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        classes: Sequence[str],
        *,
        multi_label: bool,
        loss: Loss,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        for k in conf["topk"]:
            if k > len(classes):
                raise ConfigError(f"metrics.topk must be at most the number of classes, {len(classes)}, got {k}")
        self.conf, self.classes, self.multi_label = conf, classes, multi_label
        self.sample_loss = loss
        self.k = max(conf["topk"])
        self.extra = dict(extra or {})
        for name, metric in self.extra.items():
            self._try_out(name, metric)
        self.size = 0
        self.integers: list[torch.Tensor] = []
        self.floats: list[torch.Tensor] = []

    def start(self, size: int) -> None:
        """Forgets the last evaluation; the next one is over `size` samples, on all ranks together.

        Raises:
            DataError: there is nothing to evaluate.
        """
        if size < 1:
            raise DataError("there is nothing to evaluate: the validation (or test) split is empty")
        self.size, self.integers, self.floats = size, [], []

    def update(self, logits: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor) -> None:
        """Takes one batch: (n, classes) float logits, targets as in `Batch`, and positions in the split, 0 to size - 1.

        Nothing is read from the device.
        """
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(dim=1)
        best = logits.topk(self.k, dim=1).indices if self.k > 1 else logits.argmax(dim=1, keepdim=True)
        floats = [self.sample_loss(logits, targets)[:, None], probabilities.gather(1, best[:, :1])]
        if self.multi_label or self.extra:
            floats.append(probabilities)
        if self.multi_label:
            floats.append(targets)
        elif targets.ndim == 2:
            targets = targets.argmax(dim=1)
        integers = [indices[:, None], best] if self.multi_label else [indices[:, None], best, targets[:, None]]
        self.integers.append(torch.cat(integers, dim=1))
        self.floats.append(torch.cat(floats, dim=1).float())

    def compute(self, world: World) -> Evaluation:
        """The metrics of all samples, on every rank; every rank must call it.

        Raises:
            RuntimeError: the updates of all ranks together were not one for each sample.
        """
        integers, floats = self._gathered(world)
        losses, scores, predictions = floats[:, 0], floats[:, 1], integers[:, : self.k]
        classes = len(self.classes)
        probabilities = floats[:, 2 : 2 + classes]
        confusion = None
        if self.multi_label:
            targets = floats[:, 2 + classes :]
            hits = targets.gather(1, predictions) > 0.5
            counts = count_labels(probabilities >= self.conf["threshold"], targets > 0.5)
        else:
            targets = integers[:, self.k]
            hits = predictions == targets[:, None]
            counts = count_classes(predictions[:, 0], targets, classes)
            if self.conf["confusion"]:
                pairs = targets * classes + predictions[:, 0]
                confusion = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        metrics = {f"top{k}": hits[:, :k].any(dim=1).sum().item() / self.size for k in self.conf["topk"]}
        metrics["loss"] = math.fsum(losses.tolist()) / self.size
        for average, suffix in average_suffixes(self.conf["average"]).items():
            metrics |= {f"{name}{suffix}": value for name, value in averaged(counts, average).items()}
        if self.extra:
            truth = targets.long()
            metrics |= {name: _extra_value(name, each, probabilities, truth) for name, each in self.extra.items()}
        return Evaluation(
            metrics=metrics,
            losses=losses,
            predictions=predictions,
            scores=scores,
            targets=targets,
            classes=self.classes,
            per_class=self._rows(counts) if self.conf["per_class"] else [],
            confusion=confusion,
        )

    def _gathered(self, world: World) -> tuple[torch.Tensor, torch.Tensor]:
        """All ranks' rows, on the CPU, each at its sample's place: sums with one term that is not zero are exact."""
        width = 1 + self.k + (0 if self.multi_label else 1)
        labels = len(self.classes)
        columns = 2 + (labels if self.multi_label or self.extra else 0) + (labels if self.multi_label else 0)
        device = world.device
        integers = torch.zeros(self.size, width, dtype=torch.int64, device=device)
        floats = torch.zeros(self.size, columns, dtype=torch.float32, device=device)
        if self.integers:
            rows = torch.cat(self.integers)
            places = rows[:, 0].clone()
            rows[:, 0] = 1
            integers.index_add_(0, places, rows)
            floats.index_copy_(0, places, torch.cat(self.floats))
        integers, floats = world.sum(integers).cpu(), world.sum(floats).cpu()
        self.integers, self.floats = [], []
        seen = integers[:, 0]
        if not bool((seen == 1).all()):
            place = int((seen != 1).nonzero()[0])
            raise RuntimeError(f"sample {place} of {self.size} was evaluated {int(seen[place])} times instead of once")
        return integers[:, 1:], floats

    def _rows(self, counts: Counts) -> list[dict[str, Any]]:
        columns = {**counts.scores(), "support": counts.support}
        values = {name: column.tolist() for name, column in columns.items()}
        return [
            {"class": name, **{key: column[position] for key, column in values.items()}}
            for position, name in enumerate(self.classes)
        ]

    def _try_out(self, name: str, metric: Any) -> None:
        """Runs an extra metric on one sample of each class, so that what it refuses shows before training."""
        count = len(self.classes)
        labels = torch.eye(count, dtype=torch.int64)
        probabilities = torch.full((count, count), 0.1 / count) + labels * 0.9
        _extra_value(name, metric, probabilities, labels if self.multi_label else torch.arange(count))


def _extra_value(name: str, metric: Any, probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """One of metrics.extra on all samples; ConfigError when it refuses them or gives something else than one number."""
    metric.sync_on_compute = False  # each rank has all samples already
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes without samples, samples held in memory
            metric.reset()
            metric.update(probabilities, targets)
            value = metric.compute()
            metric.reset()
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"metrics.extra.{name}: {type(metric).__name__} failed: {first}") from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"metrics.extra.{name}: {type(metric).__name__} must give one number, got {shape}")
    return float(value)
