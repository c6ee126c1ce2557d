"""The configuration of every hook, one dataclass each. The hook inherits it: `class EMA(EMAConf, Hook)`.

So the fields below are the constructor's arguments, and nothing repeats them. No torch here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob
from app.suggest import did_you_mean

PRIORITIES = {
    "HIGHEST": 0,
    "VERY_HIGH": 10,
    "HIGH": 30,
    "ABOVE_NORMAL": 40,
    "NORMAL": 50,
    "BELOW_NORMAL": 60,
    "LOW": 70,
    "VERY_LOW": 90,
    "LOWEST": 100,
}
"""The names that `hooks.NAME.priority` takes beside a number; lower runs first (MMEngine's table)."""

FILENAME = re.compile(r"(?!\.)[\w.-]*\{\}[\w.-]*")
"""A checkpoint's file name: it stays in its folder, visible, whatever the number."""

PRIORITY = "Place in the call order: 0 to 100, or HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW, LOWEST; lower runs first."


@dataclass(eq=False, repr=False)
class HookConf:
    """The keys of every hook."""

    _target_: str = MISSING
    priority: int | str = knob(50, PRIORITY)

    def __post_init__(self) -> None:
        """Allocate a hook's state; a dataclass only calls what it has seen, so the place for it is here."""


@dataclass(eq=False, repr=False)
class CheckpointConf(HookConf):
    """Save the whole training state, durably."""

    _target_: str = "app.hooks.checkpoint.Checkpoint"
    priority: int | str = knob("VERY_LOW", PRIORITY)
    interval: int = knob(
        1, "Save every so many epochs (iterations when by_epoch=false). -1: no checkpoint is ever written.", ge=-1
    )
    by_epoch: bool | None = knob(None, "The unit of interval and save_begin. null: that of train.by_epoch.")
    every_minutes: float | None = knob(
        None, "Also save when this many minutes have passed since the last save. null: off.", gt=0
    )
    out_dir: str | None = knob(
        None,
        "Root folder for checkpoints; they go to a sub-folder named after the run. null: checkpoints/ in the run folder.",
    )
    max_keep_ckpts: int = knob(-1, "How many periodic checkpoints to keep; -1 or 0: all.", ge=-1)
    save_best: Any = knob(
        None, "A metric name, a list of names, or `auto` (the first metric): keep the best by each. null: off."
    )
    rule: Any = knob(
        None, "`greater` or `less`, one or a list as long as save_best. null: known from the metric itself."
    )
    save_last: bool = knob(True, "Also save at the end, at an early stop and when interrupted.")
    save_begin: int = knob(0, "No periodic save before this epoch (iteration).", ge=0)
    save_optimizer: bool = knob(True, "false: weights only, which cannot be resumed from.")
    filename: str | None = knob(
        None, "File name with one pair of braces for the number. null: `epoch_{}` or `iter_{}`."
    )
    async_save: bool = knob(True, "Write in the background; the loop waits for the snapshot only.")

    def problems(self) -> Iterator[str]:
        """What is wrong with a key alone, or with two together."""
        key = "hooks.checkpoint"
        if self.interval == 0:
            yield f"{key}.interval must be >= 1, or -1 for no checkpoint at all, got 0"
        if self.filename is not None and not FILENAME.fullmatch(self.filename):
            yield (
                f"{key}.filename must be letters, digits, '_', '-' and '.' with one pair of braces for the number, "
                f"like epoch_{{}}; got {self.filename!r}"
            )
        if self.save_best is not None and not isinstance(self.save_best, (str, list)):
            yield f"{key}.save_best must be a metric's name, a list of them, auto or null; got {self.save_best!r}"
            return
        rules = self.rule if isinstance(self.rule, list) else [] if self.rule is None else [self.rule]
        for rule in rules:
            if rule not in ("greater", "less"):
                near = did_you_mean(str(rule), ("greater", "less"))
                yield f"{key}.rule must be greater or less, got {rule!r}{near}"
        if rules and self.save_best is None:
            yield f"{key}.rule={self.rule} has no effect without {key}.save_best"
        elif isinstance(self.rule, list) and len(rules) != len(self.listed_best()):
            counts = f"{len(rules)} entries for {len(self.listed_best())} of save_best"
            yield f"{key}.rule has {counts}; give one for each, or leave it out"

    def listed_best(self) -> list[str]:
        """`save_best` as a list."""
        return (
            self.save_best if isinstance(self.save_best, list) else [] if self.save_best is None else [self.save_best]
        )

    def listed_rules(self) -> list[str | None]:
        """The rule of each of `listed_best`; None: known from the metric itself."""
        return self.rule if isinstance(self.rule, list) else [self.rule] * len(self.listed_best())

    def pattern(self) -> str:
        """The file's name with braces for the number, without `.pth`."""
        return (self.filename or ("epoch_{}" if self.by_epoch else "iter_{}")).removesuffix(".pth")


@dataclass(eq=False, repr=False)
class LoggerConf(HookConf):
    """One line of numbers every so many iterations, to console, file and trackers."""

    _target_: str = "app.hooks.logger.Logger"
    priority: int | str = knob("BELOW_NORMAL", PRIORITY)
    interval: int = knob(
        10,
        "A line every so many iterations; the last iteration of the run and of an epoch shorter than this is always logged.",
        ge=1,
    )


@dataclass(eq=False, repr=False)
class ClassNumCheckConf(HookConf):
    """Compare the model's outputs with the data set's classes before training."""

    _target_: str = "app.hooks.class_num_check.ClassNumCheck"


@dataclass(eq=False, repr=False)
class PreemptConf(HookConf):
    """On SIGTERM, SIGINT, SIGUSR1, SIGUSR2 or SIGHUP: finish the step, save, leave; a second Ctrl-C leaves at once."""

    _target_: str = "app.hooks.preempt.Preempt"
    priority: int | str = knob("HIGHEST", PRIORITY)


@dataclass(eq=False, repr=False)
class VisualizationConf(HookConf):
    """Draw predictions on a fixed set of validation images at every validation."""

    _target_: str = "app.hooks.visualization.Visualization"
    enable: bool = knob(False, "Draw at all.")
    interval: int = knob(1, "Draw at every so many validations.", ge=1)
    max_images: int = knob(
        16, "How many validation images, spread evenly over the set; the same ones every time.", ge=1, le=256
    )
    worst: int = knob(0, "How many images of the greatest loss to draw beside the fixed ones. 0: none.", ge=0, le=256)
    rescale_factor: float | None = knob(
        None,
        "Enlarge (or shrink) images by this before drawing. null: small images are enlarged to at least 112 pixels.",
        gt=0,
        le=64,
    )
    show: bool = knob(False, "Also open a window; ignored, with a warning, where there is no display.")
    out_dir: str | None = knob(
        None, "Write the single pictures into this folder too. null: only to the visualizer backends."
    )


@dataclass(eq=False, repr=False)
class EMAConf(HookConf):
    """Keep an average of the weights and validate on it."""

    _target_: str = "app.hooks.ema.EMA"
    kind: str = knob(
        "exponential",
        "exponential: constant momentum; annealing: max(momentum, gamma / (gamma + updates)); swa: the plain mean.",
        choices=("exponential", "annealing", "swa"),
    )
    momentum: float = knob(2e-4, "average = (1 - momentum) * average + momentum * weights.", gt=0, lt=1)
    decay: float | None = knob(None, "1 - momentum, for those who think so; give one of the two.", gt=0, lt=1)
    gamma: int = knob(100, "Only for kind=annealing.", ge=1)
    begin_epoch: int = knob(0, "The average follows the weights exactly before this epoch.", ge=0)
    begin_iter: int = knob(0, "The same in iterations; give one of the two.", ge=0)
    update_buffers: bool = knob(False, "Average the buffers (batch-norm statistics) too; false: they are copied.")
    evaluate_on_ema: bool = knob(True, "Validate and test on the average.")
    evaluate_on_origin: bool = knob(
        False, "Validate on the raw weights as well; with both, these metrics end in `_origin`."
    )


@dataclass(eq=False, repr=False)
class SyncBuffersConf(HookConf):
    """Average all ranks' buffers before validation and at the end of an epoch."""

    _target_: str = "app.hooks.sync_buffers.SyncBuffers"
    priority: int | str = knob("ABOVE_NORMAL", PRIORITY)


@dataclass(eq=False, repr=False)
class EmptyCacheConf(HookConf):
    """Give the CUDA cache back; nothing happens on a CPU."""

    _target_: str = "app.hooks.empty_cache.EmptyCache"
    before_epoch: bool = knob(False, "At the start of each epoch.")
    after_epoch: bool = knob(True, "At the end of each epoch.")
    after_iter: bool = knob(False, "After each iteration.")


@dataclass(eq=False, repr=False)
class EarlyStopConf(HookConf):
    """Stop when a metric no longer improves; the last checkpoint is saved."""

    _target_: str = "app.hooks.early_stop.EarlyStop"
    priority: int | str = knob("LOWEST", PRIORITY)
    monitor: str = knob("auto", "The metric to watch; auto: the first one.")
    rule: str | None = knob(
        None, "Which direction is better. null: known from the metric itself.", choices=("greater", "less")
    )
    min_delta: float = knob(0.0, "The least change that counts as an improvement, in the metric's own unit.", ge=0)
    patience: int = knob(5, "How many validations without improvement to wait for.", ge=0)
    check_finite: bool = knob(True, "Stop when the metric is not finite.")
    threshold: float | None = knob(None, "Stop as soon as the metric is at least this good. null: off.")


@dataclass(eq=False, repr=False)
class NanGuardConf(HookConf):
    """What to do when the loss or the gradients are not finite."""

    _target_: str = "app.hooks.nan_guard.NanGuard"
    priority: int | str = knob("LOWEST", PRIORITY)
    policy: str = knob(
        "stop",
        "stop: leave with code 65; skip: do not apply a step with non-finite gradients; rollback: return to the last checkpoint, then skip.",
        choices=("stop", "skip", "rollback"),
    )
    interval: int = knob(
        10,
        "Look every so many iterations (looking makes the device wait), and at each epoch's end; policy=skip waits at every one.",
        ge=1,
    )
    max_bad: int = knob(
        1,
        "How many bad looks in a row before the policy acts; skip: stop after max_bad * interval skipped steps in a row.",
        ge=1,
    )
    max_rollbacks: int = knob(3, "After so many rollbacks the run stops.", ge=1)


@dataclass(eq=False, repr=False)
class PreciseBNConf(HookConf):
    """Recompute batch-norm statistics on training data before validation."""

    _target_: str = "app.hooks.precise_bn.PreciseBN"
    priority: int | str = knob("BELOW_NORMAL", PRIORITY)
    num_samples: int = knob(8192, "How many training samples.", ge=1)
    interval: int = knob(1, "At every so many validations.", ge=1)


@dataclass(eq=False, repr=False)
class SwitchRecipeConf(HookConf):
    """Change the augmentation or the loss from an epoch on; replayed on resume."""

    _target_: str = "app.hooks.switch_recipe.SwitchRecipe"
    priority: int | str = knob("HIGH", PRIORITY)
    schedule: list[Any] = knob(
        [],
        "A list of {epoch: first epoch (0-based), augment: like data.augment, batch_augment: like data.batch_augment, loss: like loss}.",
    )


@dataclass(eq=False, repr=False)
class ProfilerConf(HookConf):
    """A torch.profiler trace into the run folder."""

    _target_: str = "app.hooks.profiler.Profiler"
    priority: int | str = knob("VERY_LOW", PRIORITY)
    wait: int = knob(5, "Iterations before the profiler starts.", ge=0)
    warmup: int = knob(1, "Iterations that warm the profiler up.", ge=0)
    active: int = knob(3, "Iterations recorded.", ge=1)
    repeat: int = knob(1, "How many such cycles.", ge=1)
    record_shapes: bool = knob(False, "Record the shapes of the operators' inputs.")
    profile_memory: bool = knob(False, "Record allocations.")
    with_stack: bool = knob(False, "Record Python stacks.")
    with_flops: bool = knob(
        False, "Estimate the FLOPs of convolutions and matrix products, a column of the table of operators."
    )


HOOKS: dict[str, type] = {
    "checkpoint": CheckpointConf,
    "logger": LoggerConf,
    "class_num_check": ClassNumCheckConf,
    "preempt": PreemptConf,
    "visualization": VisualizationConf,
    "ema": EMAConf,
    "sync_buffers": SyncBuffersConf,
    "empty_cache": EmptyCacheConf,
    "early_stop": EarlyStopConf,
    "nan_guard": NanGuardConf,
    "precise_bn": PreciseBNConf,
    "switch_recipe": SwitchRecipeConf,
    "profiler": ProfilerConf,
}
DEFAULT_HOOKS = ("checkpoint", "logger", "class_num_check", "preempt", "visualization")
"""Those of every run, unless set to null."""
