"""The configuration of optimizers and learning-rate schedules."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class LRScalingConf:
    """Scale lr linearly with the global batch (arXiv:1706.02677)."""

    enable: bool = False
    """lr is meant for base_batch_size and multiplied by (data.batch_size * train.accumulate) / base_batch_size."""
    base_batch_size: int = knob(256, ge=1)
    """Images per step that lr is meant for."""


@dataclass(eq=False, repr=False)
class OptimConf:
    """What every optimizer has."""

    _target_: str = MISSING
    """The torch.optim class, or any class with its interface."""
    lr: float = knob(MISSING, gt=0)
    """Learning rate that the schedule multiplies."""
    weight_decay: float = knob(0.0, ge=0)
    """Weight decay, of weights; of norms and biases only with decay_norm_bias."""
    decay_norm_bias: bool = False
    """Decay norms and biases too."""
    layer_decay: float | None = knob(None, gt=0, le=1)
    """Multiply lr by this once for every layer below the last. null: the same lr everywhere."""
    multipliers: Any = None
    """A mapping: pattern of parameter names (as in fnmatch) -> {lr: factor, decay: factor}; the first that matches counts."""
    lr_scaling: LRScalingConf = field(default_factory=LRScalingConf)
    args: Any = None
    """A mapping with more arguments of the class. null: none."""


@dataclass(eq=False, repr=False)
class SGDConf(OptimConf):
    """Stochastic gradient descent with momentum."""

    _target_: str = "torch.optim.SGD"
    lr: float = knob(0.05, gt=0)
    """Learning rate that the schedule multiplies."""
    momentum: float = knob(0.9, ge=0, lt=1)
    """Momentum."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = knob(5e-4, ge=0)
    """Weight decay, of weights; of norms and biases only with decay_norm_bias."""


@dataclass(eq=False, repr=False)
class AdamConf(OptimConf):
    """Adam (arXiv:1412.6980)."""

    _target_: str = "torch.optim.Adam"
    lr: float = knob(1e-3, gt=0)
    """Learning rate that the schedule multiplies."""
    betas: list[float] = knob([0.9, 0.999], ge=0, lt=1)
    """Decay of the running averages of gradient and square."""
    eps: float = knob(1e-8, gt=0)
    """Added to the denominator."""


@dataclass(eq=False, repr=False)
class AdamWConf(AdamConf):
    """AdamW (arXiv:1711.05101)."""

    _target_: str = "torch.optim.AdamW"
    weight_decay: float = knob(0.05, ge=0)
    """Weight decay, of weights; of norms and biases only with decay_norm_bias."""


@dataclass(eq=False, repr=False)
class RMSpropConf(OptimConf):
    """RMSprop."""

    _target_: str = "torch.optim.RMSprop"
    lr: float = knob(1e-3, gt=0)
    """Learning rate that the schedule multiplies."""
    momentum: float = knob(0.0, ge=0, lt=1)
    """Momentum."""
    alpha: float = knob(0.99, ge=0, lt=1)
    """Decay of the running average of the square."""


@dataclass(eq=False, repr=False)
class TorchOptimConf(OptimConf):
    """Any optimizer of torch.optim by its name; its own arguments go into `args`."""

    _target_: str = "app.optim.optimizer.by_name"
    name: str = MISSING
    """NAdam, RAdam, Adagrad, Adafactor, …"""
    lr: float = knob(1e-3, gt=0)
    """Learning rate that the schedule multiplies."""


OPTIMS: dict[str, type] = {
    "sgd": SGDConf,
    "adam": AdamConf,
    "adamw": AdamWConf,
    "rmsprop": RMSpropConf,
    "torch": TorchOptimConf,
    "custom": OptimConf,
}


@dataclass(eq=False, repr=False)
class ScheduleConf:
    """The factor on lr as a function of the step; lengths are in epochs (iterations when train.by_epoch=false)."""

    _target_: str = MISSING
    """A function in app/optim/schedule.py, or a class of torch.optim.lr_scheduler through schedule=torch."""
    warmup: float = knob(0.0, ge=0)
    """Length of the linear warm-up; the main shape begins after it."""
    warmup_factor: float = knob(0.01, ge=0, le=1)
    """Factor that the warm-up begins with."""


@dataclass(eq=False, repr=False)
class ConstantConf(ScheduleConf):
    """lr as it is."""

    _target_: str = "app.optim.schedule.constant"


@dataclass(eq=False, repr=False)
class StepConf(ScheduleConf):
    """Multiply by gamma every `size`."""

    _target_: str = "app.optim.schedule.step"
    size: float = knob(30.0, gt=0)
    """Length of a stair."""
    gamma: float = knob(0.1, gt=0)
    """Factor of a stair."""


@dataclass(eq=False, repr=False)
class MultiStepConf(ScheduleConf):
    """Multiply by gamma at each milestone."""

    _target_: str = "app.optim.schedule.multistep"
    milestones: list[float] = knob(MISSING, gt=0)
    """When, counted from the start of training."""
    gamma: float = knob(0.1, gt=0)
    """Factor of a stair."""


@dataclass(eq=False, repr=False)
class CosineConf(ScheduleConf):
    """Half a cosine from 1 to `final` (arXiv:1608.03983, without restarts)."""

    _target_: str = "app.optim.schedule.cosine"
    final: float = knob(0.0, ge=0, le=1)
    """Factor at the end."""


@dataclass(eq=False, repr=False)
class PolyConf(ScheduleConf):
    """(1 - t) ** power, down to `final`."""

    _target_: str = "app.optim.schedule.poly"
    power: float = knob(1.0, gt=0)
    """Exponent; 1 is linear."""
    final: float = knob(0.0, ge=0, le=1)
    """Factor at the end."""


@dataclass(eq=False, repr=False)
class ExponentialConf(ScheduleConf):
    """Multiply by gamma every epoch (iteration), smoothly."""

    _target_: str = "app.optim.schedule.exponential"
    gamma: float = knob(0.95, gt=0, le=1)
    """Factor of one epoch (iteration)."""


@dataclass(eq=False, repr=False)
class OneCycleConf(ScheduleConf):
    """Up to lr, then down to nothing, along cosines (arXiv:1708.07120)."""

    _target_: str = "app.optim.schedule.one_cycle"
    up: float = knob(0.3, gt=0, lt=1)
    """Part of the run that lr rises in."""
    start_div: float = knob(25.0, ge=1)
    """lr begins at lr / start_div."""
    final_div: float = knob(1e4, ge=1)
    """lr ends at lr / start_div / final_div."""


@dataclass(eq=False, repr=False)
class PlateauConf(ScheduleConf):
    """Multiply by gamma when a metric has stopped improving."""

    _target_: str = "app.optim.schedule.Plateau"
    monitor: str = "auto"
    """The metric to watch; auto: the first one."""
    rule: str | None = knob(None, choices=("greater", "less"))
    """Which direction is better. null: known from the metric itself."""
    gamma: float = knob(0.1, gt=0, lt=1)
    """Factor of a stair."""
    patience: int = knob(5, ge=0)
    """Validations without improvement to wait for."""
    min_delta: float = knob(0.0, ge=0)
    """The least change that counts as an improvement."""
    final: float = knob(0.0, ge=0, le=1)
    """Least factor."""


@dataclass(eq=False, repr=False)
class TorchScheduleConf(ScheduleConf):
    """Any scheduler of torch, made with its own arguments."""

    _target_: str = "app.optim.schedule.TorchSchedule"
    scheduler: Any = MISSING
    """{_target_: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0: 10}; stepped once per epoch (iteration)."""


SCHEDULES: dict[str, type] = {
    "constant": ConstantConf,
    "step": StepConf,
    "multistep": MultiStepConf,
    "cosine": CosineConf,
    "poly": PolyConf,
    "exponential": ExponentialConf,
    "one_cycle": OneCycleConf,
    "plateau": PlateauConf,
    "torch": TorchScheduleConf,
    "custom": ScheduleConf,
}
