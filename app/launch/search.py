"""Search with Optuna: ask for points, launch them, tell their results. The study lives in the sweep's folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from app.errors import ConfigError, RunError
from app.metrics.names import metric_rules

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]


def require_optuna() -> None:
    """Raises ConfigError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("hydra/sweeper=optuna needs the package optuna: pip install 'hydra-experiment-app[optuna]'")


def search(options: dict[str, Any], launcher: Launcher, config: DictConfig, arguments: Sequence[str]) -> float | None:
    """Runs trials until there are `n_trials`; returns the best value. Failed jobs are failed trials.

    Raises:
        RunError: no trial succeeded.
    """
    from optuna.trial import TrialState

    parsed = OverridesParser.create().parse_overrides(list(arguments))
    constants = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    space = {override.get_key_element(): distribution(override) for override in parsed if override.is_sweep_override()}
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search: give ranges, such as optim.lr=interval(0.001,0.1)"
        )
    if config.hydra.launcher.get("wait") is False:
        raise ConfigError("hydra/sweeper=optuna needs the results of its jobs; remove hydra.launcher.wait=false")
    require_direction(options["direction"], config)
    study = open_study(options, Path(config.hydra.sweep.dir))
    requeue_unfinished(study)
    finished = (TrialState.COMPLETE, TrialState.FAIL)
    while (done := len(study.get_trials(deepcopy=False, states=finished))) < options["n_trials"]:
        trials = [study.ask(space) for _ in range(min(options["n_jobs"], options["n_trials"] - done))]
        run_trials(study, trials, launcher, constants, first_number=trials[0].number)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise RunError(f"none of {options['n_trials']} trials succeeded; see the report in {config.hydra.sweep.dir}", 1)
    settings = " ".join(as_overrides(study.best_params))
    print(f"best of {len(complete)} trials: {study.best_value:.6g} with {settings}")
    return float(study.best_value)


def require_direction(direction: str, config: DictConfig) -> None:
    """Raises ConfigError when Optuna would look for the worst value of the metric that the jobs return."""
    raw: Any = OmegaConf.to_container(config)
    metric, rule = next(iter(metric_rules(raw).items()))
    right = {"greater": "maximize", "less": "minimize"}.get(rule or "", direction)
    if direction != right:
        raise ConfigError(
            f"hydra.sweeper.direction={direction}, but the jobs return {metric}, of which {rule} is better: "
            f"set hydra.sweeper.direction={right}, or another metrics.monitor"
        )


def run_trials(
    study: Study, trials: Sequence[Trial], launcher: Launcher, constants: list[str], first_number: int
) -> None:
    """Launches each different point once, and tells the study what became of all of them."""
    points = {tuple(as_overrides(trial.params)): None for trial in trials}
    results = launcher.launch([[*point, *constants] for point in points], initial_job_idx=first_number)
    values = dict(zip(points, map(value_of, results), strict=True))
    for trial in trials:
        tell(study, trial, values[tuple(as_overrides(trial.params))])


def tell(study: Study, trial: Trial, value: float | None) -> None:
    """A trial without a finite value has failed."""
    from optuna.trial import TrialState

    if value is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


def value_of(result: JobReturn) -> float | None:
    """What a job returned, if that is a finite number."""
    value = result.return_value if result.status == JobStatus.COMPLETED else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def open_study(options: dict[str, Any], folder: Path) -> Study:
    """The study in the sweep's folder: a new one, or the one that an earlier launch has left."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = options["storage"] or JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    study = optuna.create_study(
        study_name=folder.name, storage=storage, direction=options["direction"], load_if_exists=True
    )
    seed = options["seed"]
    if seed is not None:
        seed += len(study.get_trials(deepcopy=False))  # or a later launch would draw the points of the first one again
    tpe = options["sampler"] == "tpe"
    study.sampler = optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed=seed)
    return study


def requeue_unfinished(study: Study) -> None:
    """Trials that a killed launch has left running are tried again first: their folders hold what they had reached."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.PRUNED)


def distribution(override: Override) -> BaseDistribution:
    """Optuna's word for `interval(a,b)` (`tag(log,…)`, `tag(int,…)`), `range(a,b,step)` and `a,b,c`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        log = "log" in sweep.tags
        if "int" in sweep.tags:
            return IntDistribution(int(sweep.start), int(sweep.end), log=log)
        return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        if all(isinstance(value, int) for value in values) and not sweep.shuffle:
            return IntDistribution(values[0], values[-1], step=int(sweep.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def as_overrides(params: dict[str, Any]) -> list[str]:
    """A trial's parameters as Hydra overrides."""
    return [f"{key}={value}" for key, value in sorted(params.items())]
