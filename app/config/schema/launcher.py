"""The configuration of `--multirun`: `hydra/launcher=local` (the default) or `slurm`, `hydra/sweeper=basic` (the default) or `optuna`."""

from dataclasses import dataclass
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class LocalLauncherConf:
    """A queue of jobs over the GPUs of this machine, or over its cores where it has none."""

    _target_: str = "hydra_plugins.app_launchers.local.LocalLauncher"
    gpus: Any = knob(
        "auto",
        "auto: those in CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists; a list of their ids; []: use the CPU.",
    )
    gpus_per_job: int = knob(1, "GPUs that one job gets and sees.", ge=1)
    jobs_per_gpu: int = knob(1, "Jobs that share a GPU at the same time; needs gpus_per_job=1.", ge=1)
    cpu_slots: int | None = knob(None, "Jobs at the same time where there is no GPU. null: one per core.", ge=1)
    processes_per_job: int | None = knob(
        None, "Processes (ranks) of one job. null: one per GPU of the job, one on a CPU.", ge=1
    )
    threads_per_process: int | None = knob(
        None,
        "OMP_NUM_THREADS of each process. null: as set in the environment, else the cores divided among them.",
        ge=1,
    )
    start: str = knob(
        "auto",
        "fork: jobs are forked from a process that has already imported torch; fresh: each is a new interpreter; auto: fork where that is safe.",
        choices=("auto", "fork", "fresh"),
    )
    preload: list[str] = knob(
        ["torch._dynamo", "app.job", "app.visualizer.local", "app.visualizer.run_page", "filelock"],
        "Modules that forked jobs share; they must neither start a thread nor touch a GPU.",
    )
    grace_seconds: float = knob(
        60.0,
        "After Ctrl-C: time for the jobs to save and leave before they are killed; a second Ctrl-C kills at once.",
        ge=0,
    )


@dataclass(eq=False, repr=False)
class SlurmLauncherConf(SlurmQueueConf):  # type: ignore[misc]  # its package has no types
    """One SLURM job per point of the sweep, as a job array; nodes x tasks_per_node processes make one distributed run. All options of hydra-submitit-launcher; those without a text are sbatch's own."""

    _target_: str = "hydra_plugins.app_launchers.slurm.SlurmLauncher"
    wait: bool = knob(True, "false: submit and leave; the same command with resume=true collects and completes.")
    poll_seconds: float = knob(10.0, "How often SLURM is asked while waiting.", gt=0)
    python: str | None = knob(
        None,
        "Command that starts Python on the nodes, such as `apptainer exec image.sif python`. null: this interpreter.",
    )
    name: str = knob("${name}", "Name of the jobs in SLURM's queue.")
    nodes: int = knob(1, "Nodes of each job.", ge=1)
    tasks_per_node: int = knob(1, "Processes on each node: one per GPU.", ge=1)
    mem_gb: float | None = knob(None, "Memory of each node, in GB.", gt=0)
    timeout_min: int = knob(
        60,
        "Time limit of one launch in minutes; a run that needs longer is saved, put back into the queue, and continued.",
        ge=1,
    )
    signal_delay_s: int = knob(
        120,
        "Seconds before the time limit at which SLURM asks the run to save; more than one step and one save take.",
        ge=1,
    )
    max_num_timeout: int = knob(100, "How many times a run may reach its time limit and be queued again.", ge=0)
    array_parallelism: int = knob(256, "Jobs of the array at the same time.", ge=1)
    setup: list[str] = knob([], "Shell lines before the run, such as `module load cuda`.")
    additional_parameters: dict[str, Any] = knob(
        {}, "Any other sbatch options, as a mapping: {nodelist: n1, mail-type: END}."
    )
    stderr_to_stdout: bool = knob(True, "One log for standard output and error of the job's script.")


LAUNCHERS: dict[str, type] = {"local": LocalLauncherConf, "slurm": SlurmLauncherConf}


@dataclass(eq=False, repr=False)
class OptunaSweeperConf:
    """Search with Optuna instead of a grid: `optim.lr=tag(log,interval(1e-4,1e-1))`, `model.width=range(8,65,8)`, `optim=sgd,adamw`."""

    _target_: str = "hydra_plugins.app_launchers.search.OptunaSweeper"
    n_trials: int = knob(20, "Points to try in all; those of an earlier launch count, and so do failed ones.", ge=1)
    n_jobs: int = knob(2, "Points that are chosen and started together.", ge=1)
    direction: str = knob("maximize", "What to do with the monitored metric.", choices=("maximize", "minimize"))
    sampler: str = knob(
        "tpe",
        "How points are chosen: tree-structured Parzen estimator (Optuna's default), or at random.",
        choices=("tpe", "random"),
    )
    seed: int | None = knob(None, "Seed of the sampler.")
    storage: str | None = knob(
        None, "Where the study is kept: an address that Optuna knows. null: optuna.journal in the sweep's folder."
    )


SWEEPERS: dict[str, type] = {"optuna": OptunaSweeperConf}
