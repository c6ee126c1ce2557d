"""The configuration of optimizers and learning-rate schedules."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class LRScalingConf:
    """Scale lr linearly with the global batch (arXiv:1706.02677)."""

    enable: bool = knob(
        False,
        "lr is meant for base_batch_size and multiplied by (data.batch_size * train.accumulate) / base_batch_size.",
    )
    base_batch_size: int = knob(256, "Images per step that lr is meant for.", ge=1)


@dataclass(eq=False, repr=False)
class OptimConf:
    """What every optimizer has."""

    _target_: str = MISSING
    lr: float = knob(MISSING, "Learning rate that the schedule multiplies.", gt=0)
    weight_decay: float = knob(0.0, "Weight decay, of weights; of norms and biases only with decay_norm_bias.", ge=0)
    decay_norm_bias: bool = knob(False, "Decay norms and biases too.")
    layer_decay: float | None = knob(
        None, "Multiply lr by this once for every layer below the last. null: the same lr everywhere.", gt=0, le=1
    )
    multipliers: Any = knob(
        None,
        "A mapping: pattern of parameter names (as in fnmatch) -> {lr: factor, decay: factor}; the first that matches counts.",
    )
    lr_scaling: LRScalingConf = field(default_factory=LRScalingConf)
    args: Any = knob(None, "A mapping with more arguments of the class. null: none.")


@dataclass(eq=False, repr=False)
class SGDConf(OptimConf):
    """Stochastic gradient descent with momentum."""

    _target_: str = "torch.optim.SGD"
    lr: float = knob(0.05, "Learning rate that the schedule multiplies.", gt=0)
    momentum: float = knob(0.9, "Momentum.", ge=0, lt=1)
    nesterov: bool = knob(False, "Nesterov's momentum.")
    weight_decay: float = knob(5e-4, "Weight decay, of weights; of norms and biases only with decay_norm_bias.", ge=0)


@dataclass(eq=False, repr=False)
class AdamConf(OptimConf):
    """Adam (arXiv:1412.6980)."""

    _target_: str = "torch.optim.Adam"
    lr: float = knob(1e-3, "Learning rate that the schedule multiplies.", gt=0)
    betas: list[float] = knob([0.9, 0.999], "Decay of the running averages of gradient and square.", ge=0, lt=1)
    eps: float = knob(1e-8, "Added to the denominator.", gt=0)


@dataclass(eq=False, repr=False)
class AdamWConf(AdamConf):
    """AdamW (arXiv:1711.05101)."""

    _target_: str = "torch.optim.AdamW"
    weight_decay: float = knob(0.05, "Weight decay, of weights; of norms and biases only with decay_norm_bias.", ge=0)


@dataclass(eq=False, repr=False)
class RMSpropConf(OptimConf):
    """RMSprop."""

    _target_: str = "torch.optim.RMSprop"
    lr: float = knob(1e-3, "Learning rate that the schedule multiplies.", gt=0)
    momentum: float = knob(0.0, "Momentum.", ge=0, lt=1)
    alpha: float = knob(0.99, "Decay of the running average of the square.", ge=0, lt=1)


@dataclass(eq=False, repr=False)
class TorchOptimConf(OptimConf):
    """Any optimizer of torch.optim by its name; its own arguments go into `args`."""

    _target_: str = "app.optim.optimizer.by_name"
    name: str = knob(MISSING, "NAdam, RAdam, Adagrad, Adafactor, …")
    lr: float = knob(1e-3, "Learning rate that the schedule multiplies.", gt=0)


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
    warmup: float = knob(0.0, "Length of the linear warm-up; the main shape begins after it.", ge=0)
    warmup_factor: float = knob(0.01, "Factor that the warm-up begins with.", ge=0, le=1)


@dataclass(eq=False, repr=False)
class ConstantConf(ScheduleConf):
    """lr as it is."""

    _target_: str = "app.optim.schedule.constant"


@dataclass(eq=False, repr=False)
class StepConf(ScheduleConf):
    """Multiply by gamma every `size`."""

    _target_: str = "app.optim.schedule.step"
    size: float = knob(30.0, "Length of a stair.", gt=0)
    gamma: float = knob(0.1, "Factor of a stair.", gt=0)


@dataclass(eq=False, repr=False)
class MultiStepConf(ScheduleConf):
    """Multiply by gamma at each milestone."""

    _target_: str = "app.optim.schedule.multistep"
    milestones: list[float] = knob(MISSING, "When, counted from the start of training.", gt=0)
    gamma: float = knob(0.1, "Factor of a stair.", gt=0)


@dataclass(eq=False, repr=False)
class CosineConf(ScheduleConf):
    """Half a cosine from 1 to `final` (arXiv:1608.03983, without restarts)."""

    _target_: str = "app.optim.schedule.cosine"
    final: float = knob(0.0, "Factor at the end.", ge=0, le=1)


@dataclass(eq=False, repr=False)
class PolyConf(ScheduleConf):
    """(1 - t) ** power, down to `final`."""

    _target_: str = "app.optim.schedule.poly"
    power: float = knob(1.0, "Exponent; 1 is linear.", gt=0)
    final: float = knob(0.0, "Factor at the end.", ge=0, le=1)


@dataclass(eq=False, repr=False)
class ExponentialConf(ScheduleConf):
    """Multiply by gamma every epoch (iteration), smoothly."""

    _target_: str = "app.optim.schedule.exponential"
    gamma: float = knob(0.95, "Factor of one epoch (iteration).", gt=0, le=1)


@dataclass(eq=False, repr=False)
class OneCycleConf(ScheduleConf):
    """Up to lr, then down to nothing, along cosines (arXiv:1708.07120)."""

    _target_: str = "app.optim.schedule.one_cycle"
    up: float = knob(0.3, "Part of the run that lr rises in.", gt=0, lt=1)
    start_div: float = knob(25.0, "lr begins at lr / start_div.", ge=1)
    final_div: float = knob(1e4, "lr ends at lr / start_div / final_div.", ge=1)


@dataclass(eq=False, repr=False)
class PlateauConf(ScheduleConf):
    """Multiply by gamma when a metric has stopped improving."""

    _target_: str = "app.optim.schedule.Plateau"
    monitor: str = knob("auto", "The metric to watch; auto: the first one.")
    rule: str | None = knob(
        None, "Which direction is better. null: known from the metric itself.", choices=("greater", "less")
    )
    gamma: float = knob(0.1, "Factor of a stair.", gt=0, lt=1)
    patience: int = knob(5, "Validations without improvement to wait for.", ge=0)
    min_delta: float = knob(0.0, "The least change that counts as an improvement.", ge=0)
    final: float = knob(0.0, "Least factor.", ge=0, le=1)


@dataclass(eq=False, repr=False)
class TorchScheduleConf(ScheduleConf):
    """Any scheduler of torch, made with its own arguments."""

    _target_: str = "app.optim.schedule.TorchSchedule"
    scheduler: Any = knob(
        MISSING,
        "{_target_: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0: 10}; stepped once per epoch (iteration).",
    )


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
