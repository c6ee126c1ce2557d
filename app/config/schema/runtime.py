"""The configuration of randomness, logging, visualizer backends, environment and launchers."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class RandomnessConf:
    """Where random numbers come from."""

    seed: int | None = knob(
        None, "Seed of everything. null: drawn, logged, stored, and used again on resume.", ge=0, lt=2**63
    )
    deterministic: bool = knob(
        False, "Bit-reproducible on the same machine also on a GPU, at a cost; beats env.cudnn_benchmark."
    )
    diff_rank_seed: bool = knob(
        False,
        "Give each rank its own seed for dropout and the like (each rank's draws differ in any case; this changes the seed itself).",
    )


@dataclass(eq=False, repr=False)
class LoggingConf:
    """What is logged, and how values are smoothed."""

    level: str = knob(
        "INFO",
        "Least level on console and in the file; ranks above 0 speak from WARNING on.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    window_size: int = knob(10, "Iterations that a logged value is averaged over.", ge=1)
    custom: list[Any] = knob(
        [],
        "A list of {source: loss|top1|grad_norm|lr|time|data_time, method: mean|min|max|last, window: N|epoch|global, name}.",
    )
    num_digits: int = knob(4, "Digits after the point.", ge=1, le=10)
    progress: bool | str = knob("auto", "A live progress display; auto: on a terminal.", choices=(True, False, "auto"))


@dataclass(eq=False, repr=False)
class MPConf:
    """Processes and threads."""

    start_method: str = knob("fork", "How loader workers are started.", choices=("fork", "spawn", "forkserver"))
    opencv_num_threads: int = knob(0, "Threads of OpenCV in each process, where it is installed.", ge=0)
    num_threads: int | None = knob(
        None, "Threads of torch in this process. null: torch's choice, divided among the ranks of a machine.", ge=1
    )


@dataclass(eq=False, repr=False)
class DistConf:
    """Several processes in one run."""

    launcher: str = knob(
        "auto",
        "auto: processes started together by torchrun, or by srun as tasks of one step, are one run; none: each is a run of its own.",
        choices=("auto", "none"),
    )
    backend: str = knob("auto", "auto: nccl on GPUs, gloo on CPUs.", choices=("auto", "nccl", "gloo"))
    timeout: float = knob(600.0, "Seconds after which a collective without all ranks is an error.", gt=0)
    strategy: str = knob(
        "ddp", "ddp: every rank holds the model; fsdp: its parameters are sharded (FSDP2).", choices=("ddp", "fsdp")
    )
    sync_bn: bool = knob(False, "Batch norm over all ranks' images.")
    find_unused_parameters: bool = knob(False, "DDP: for models that do not use every parameter in every step.")
    master_addr: str | None = knob(None, "Rendezvous address. null: from torchrun or SLURM.")
    master_port: int | None = knob(None, "Rendezvous port, likewise.", ge=1, le=65535)


@dataclass(eq=False, repr=False)
class EnvConf:
    """The machine and the process."""

    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps.")
    cudnn_benchmark: bool = knob(False, "Let cuDNN measure and choose algorithms.")
    compile: bool | str = knob(
        False,
        "torch.compile the model's forward: false, true, or a mode.",
        choices=(True, False, "default", "reduce-overhead", "max-autotune"),
    )
    channels_last: bool | str = knob(
        "auto", "Channels-last memory layout; auto: for convolutions on a GPU under AMP.", choices=(True, False, "auto")
    )
    resource_limit: int = knob(4096, "Least number of open files allowed.", ge=64)
    mp: MPConf = field(default_factory=MPConf)
    dist: DistConf = field(default_factory=DistConf)


@dataclass(eq=False, repr=False)
class BackendConf:
    """What every visualizer backend has."""

    _target_: str = MISSING


@dataclass(eq=False, repr=False)
class LocalBackendConf(BackendConf):
    """scalars.jsonl, pictures, tables and a self-contained page in vis_data/."""

    _target_: str = "app.visualizer.local.Local"
    page: bool = knob(True, "Write report.html, a page with curves and pictures that needs no network.")


@dataclass(eq=False, repr=False)
class TensorBoardConf(BackendConf):
    """TensorBoard event files in vis_data/tensorboard."""

    _target_: str = "app.visualizer.tensorboard.TensorBoard"
    flush_seconds: int = knob(10, "How often events are written out.", ge=1)


@dataclass(eq=False, repr=False)
class WandbConf(BackendConf):
    """Weights & Biases; the key comes from WANDB_API_KEY or `wandb login`, never from the config."""

    _target_: str = "app.visualizer.wandb.Wandb"
    project: str = knob("hydra-experiment-app", "Project.")
    name: str | None = knob(None, "Run name. null: the run folder's.")
    entity: str | None = knob(None, "User or team. null: your default.")
    mode: str = knob("online", "online, offline (sync later) or disabled.", choices=("online", "offline", "disabled"))
    group: str | None = knob(None, "Group. null: the sweep's folder name, or none.")
    tags: list[str] = knob([], "Tags.")


@dataclass(eq=False, repr=False)
class MlflowConf(BackendConf):
    """MLflow; needs the extra `mlflow`."""

    _target_: str = "app.visualizer.mlflow.Mlflow"
    tracking_uri: str | None = knob(None, "Where to. null: MLFLOW_TRACKING_URI, or an SQLite file in vis_data/.")
    experiment: str | None = knob(None, "Experiment. null: the config's name.")
    run_name: str | None = knob(None, "Run name. null: the run folder's.")
    tags: dict[str, str] = knob({}, "Tags.")


BACKENDS: dict[str, type] = {
    "local": LocalBackendConf,
    "tensorboard": TensorBoardConf,
    "wandb": WandbConf,
    "mlflow": MlflowConf,
}
DEFAULT_BACKENDS = ("local",)
"""Those of every run, unless set to null."""
