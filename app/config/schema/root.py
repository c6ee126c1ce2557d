"""The root of the configuration."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from app.config.schema.hooks import DEFAULT_HOOKS, HOOKS
from app.config.schema.knob import knob
from app.config.schema.model import MetricsConf
from app.config.schema.runtime import BACKENDS, DEFAULT_BACKENDS, EnvConf, LoggingConf, RandomnessConf


@dataclass(eq=False, repr=False)
class TrainConf:
    """How long to train, when to validate, and what one step is."""

    by_epoch: bool = knob(
        True,
        "The one clock: epochs or iterations. Hooks, schedule, validation and logging follow it unless told otherwise.",
    )
    max_epochs: int | None = knob(None, "Length, when by_epoch=true.", ge=1)
    max_iters: int | None = knob(None, "Length, when by_epoch=false.", ge=1)
    val_begin: int = knob(1, "First epoch (iteration) to validate at.", ge=0)
    val_interval: int = knob(1, "Validate every so many epochs (iterations); always at the end too.", ge=1)
    accumulate: int = knob(1, "Batches whose gradients make one step; a step is an optimizer step everywhere.", ge=1)
    clip_norm: float | None = knob(None, "Greatest norm of the gradients. null: no clipping.", gt=0)
    amp: bool | str = knob(
        False,
        "Autocast: off, bf16 or fp16 (with loss scaling); on CPU as well.",
        choices=(False, "off", "bf16", "fp16"),
    )


@dataclass(eq=False, repr=False)
class AppConf:
    """One experiment."""

    name: str = knob(MISSING, "Names the folder below output_root and the tracker runs.")
    mode: str = knob("train", "train (with validation) or test.", choices=("train", "test"))
    load_from: str | None = knob(
        None,
        "Checkpoint to take weights (with resume=true: everything) from: a path or http(s):// address of a .pth, .pt or .safetensors file; #sha256=… is checked.",
    )
    resume: bool | str = knob(
        False,
        "false; true: continue this experiment's newest run; auto: the same if there is one, else load_from, else fresh; or a checkpoint's path.",
    )
    check: bool = knob(False, "Try one train step, one evaluation step, one save and one load, then stop.")
    tta: str | None = knob(
        None, "Test-time augmentation: average the predictions of an image and its mirror image.", choices=("flip",)
    )
    output_root: str = knob("outputs", "Folder of all run folders.")
    trusted_packages: list[str] = knob(
        [],
        "Packages whose classes _target_ may name, besides those below the current directory; counts on the command line or in APP_TRUSTED_PACKAGES only.",
    )
    train: TrainConf = field(default_factory=TrainConf)
    model: Any = knob(MISSING, "The model: see --help model.")
    data: Any = knob(MISSING, "The data set: see --help data.")
    optim: Any = knob(MISSING, "The optimizer: see --help optim.")
    schedule: Any = knob(MISSING, "The learning-rate schedule: see --help schedule.")
    loss: Any = knob(MISSING, "The training loss: see --help loss.")
    metrics: MetricsConf = field(default_factory=MetricsConf)
    hooks: dict[str, Any] = knob(
        {name: HOOKS[name] for name in DEFAULT_HOOKS},
        "The hooks by name, the default ones and those added: see --help hooks.",
    )
    visualizer: dict[str, Any] = knob(
        {name: BACKENDS[name] for name in DEFAULT_BACKENDS}, "The visualizer backends by name: see --help visualizer."
    )
    randomness: RandomnessConf = field(default_factory=RandomnessConf)
    logging: LoggingConf = field(default_factory=LoggingConf)
    env: EnvConf = field(default_factory=EnvConf)
