"""The central types: what a run is made of, and what one step hands to its hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from app.core.ranks import World

if TYPE_CHECKING:
    from app.core.hook import Hook
    from app.metrics.metrics import Evaluation, Metrics
    from app.visualizer.base import Visualizer


@dataclass(slots=True)
class Progress:
    """What has been done so far; written by the engine only. All 0-based counts of finished things."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    """Steps done in the current epoch: where it goes on."""
    samples: int = 0
    """Training samples seen, over all ranks."""
    evaluated: int = -1
    """The step at which the last evaluation was finished; -1 before the first."""


class Batch(NamedTuple):
    """Images and their targets on the training device; valid during the call."""

    images: torch.Tensor
    """(n, channels, height, width), float, normalised."""
    targets: torch.Tensor
    """(n,) int64 class indices, or (n, classes) float: soft or multi-label targets."""
    indices: torch.Tensor
    """(n,) int64 positions in the data set."""
    size: int
    """Samples that count. Smaller than len(images) only on a rank that has none: then 0, and the batch is a dummy."""


class StepBatch(NamedTuple):
    """All that one optimizer step consumes."""

    micros: Sequence[Batch]
    """This rank's batches, one forward and backward each; equally many on every rank."""
    size: int
    """Samples of the step over all ranks."""


class StepInfo(NamedTuple):
    """What one step did. Tensors stay on the device: reading one makes the host wait."""

    step: int
    """Counted from 1, as `progress.step` after it."""
    epoch: int
    batch: int
    """0-based, like `epoch`."""
    loss: torch.Tensor
    """Scalar: this rank's part of the mean loss over the step's samples (the sum over ranks is the mean)."""
    logits: Sequence[torch.Tensor]
    """(n, classes) of each micro-batch, detached."""
    targets: Sequence[torch.Tensor]
    grad_norm: torch.Tensor | None
    """Scalar, before clipping; None when nothing is clipped."""
    lr: float
    """Of the first parameter group."""
    size: int
    """Samples over all ranks."""
    data_seconds: float
    step_seconds: float


class DataFeed(Protocol):
    """A data set as the engine sees it."""

    classes: Sequence[str]
    train_size: int
    channels: int
    image_size: int
    steps_per_epoch: int
    multi_label: bool
    smallest_batch: int
    """Images of the smallest forward pass of an epoch on any rank."""

    def train(self, epoch: int, start: int) -> Iterator[StepBatch]:
        """The steps of `epoch` from the `start`-th on, at a cost that does not depend on `start`."""
        ...

    def evaluate(self, split: str) -> Iterator[Batch | None]:
        """This rank's batches of `val` or `test`, in order, each sample once over all ranks.

        Batch number b goes to rank b % world.size, so its composition does not depend on the world size; a rank
        without a batch in the last round gets None, so all ranks iterate equally often.
        """
        ...

    def eval_size(self, split: str) -> int: ...

    def sample_images(self, split: str, indices: Sequence[int]) -> torch.Tensor:
        """uint8 (n, channels, height, width): the images as evaluation sees them, before normalisation."""
        ...

    def set_recipe(self, augment: Any, batch_augment: Any) -> None:
        """Changes the training augmentation from the next epoch that `train` starts."""
        ...

    def close(self) -> None: ...


class Schedule(Protocol):
    """The factor on the base learning rates."""

    def factor(self, step: int) -> float: ...


@dataclass(slots=True)
class TrainState:
    """What a step changes and a checkpoint holds."""

    model: nn.Module
    """The bare model: its state_dict has no wrapper's prefixes."""
    forward: nn.Module | Callable[..., Any]
    """What is called: the model, wrapped for several processes or compiled where configured."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    progress: Progress = field(default_factory=Progress)


@dataclass
class Run:
    """One run: built once, passed to every hook."""

    config: dict[str, Any]
    """The configuration as plain values, for the record: values from the environment stay `${oc.env:NAME}`."""
    folder: Path
    world: World
    state: TrainState
    data: DataFeed
    metrics: Metrics
    schedule: Schedule
    visualizer: Visualizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Mean loss of (n, classes) logits and the batch's targets."""
    make_loss: Callable[[Mapping[str, Any]], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
    """Makes another one from its section of the configuration."""
    monitored: Mapping[str, str | None]
    """Metric -> `greater`, `less` or None (not known); the first is the run's own (see app.metrics.names)."""
    seed: int
    rank_seed: int
    """Of what is drawn inside a step: the same, unless randomness.diff_rank_seed."""
    by_epoch: bool
    length: int
    """Epochs, or iterations when by_epoch is false."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the run came from, for the record in its checkpoints: versions of packages, commit of the code."""
    phase: str = "val"
    """Prefix of the metric names: `val`, or `test` with mode=test."""
    tta: bool = False
    """Average the predictions of an image and its mirror image."""
    hooks: dict[str, Hook] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    """The newest evaluation: metrics and, on the main rank, each sample's loss and prediction."""
    evaluation_seconds: float = 0.0
    """How long it took."""
    checkpoint_folder: Path | None = None
    stop_reason: str | None = None
    exit_code: int = 0
    skip_nonfinite: bool = False
    """Do not apply a step whose gradient norm is not finite; looking makes the host wait at every step."""
    interrupted: Callable[[], bool] = lambda: False
    """True once this process was asked to leave (set by the preempt hook); polled between evaluation batches."""
    save_requested: bool = False
    """Save at this iteration's commit, and go on; the checkpoint hook sets it back."""
    leave: Callable[[], None] | None = None
    """Called last of all when set, everything being saved and closed: a cluster launcher's own signal handler."""
    evaluate: Callable[[], dict[str, float] | None] = lambda: None
    """Evaluates the weights as they are now, without hooks; None when interrupted. Set by the engine."""
    rollback_reason: str | None = None
    """Set: the engine returns to the newest checkpoint instead of going on."""

    def stop(self, reason: str, exit_code: int = 0) -> None:
        """Ends the run after this iteration's commit; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason, self.exit_code = reason, exit_code

    def request_rollback(self, reason: str) -> None:
        """Return to the newest intact checkpoint as soon as the calling hook is done; nothing is saved before."""
        self.rollback_reason = reason

    @property
    def total_steps(self) -> int:
        """Steps of the whole run at the present length and batch size."""
        return self.length * self.data.steps_per_epoch if self.by_epoch else self.length

    @property
    def position(self) -> int:
        """Where the run is on the way to `total_steps`: equals progress.step unless the batch size was changed."""
        progress = self.state.progress
        return progress.epoch * self.data.steps_per_epoch + progress.batch if self.by_epoch else progress.step

    @property
    def count(self) -> int:
        """Finished epochs (iterations when by_epoch is false): what every interval counts unless told otherwise."""
        return self.state.progress.epoch if self.by_epoch else self.state.progress.step

    @property
    def finished(self) -> bool:
        return self.count >= self.length
