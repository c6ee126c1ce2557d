"""The Optuna sweeper: failed jobs are failed trials, and the study goes on."""

from pathlib import Path

import pytest
from invocation import Terminal
from toy import KILLED

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.storages import JournalStorage  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(0.1,1)", FloatDistribution(0.1, 1.0)),
        ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("a=tag(int,interval(1,8))", IntDistribution(1, 8)),
        ("a=range(8,65,8)", IntDistribution(8, 64, step=8)),
        ("a=sgd,adamw", CategoricalDistribution(["sgd", "adamw"])),
        ("a=range(0.5,2,0.5)", CategoricalDistribution(["0.5", "1.0", "1.5"])),
    ],
)
def test_distributions(override: str, expected: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from app.launch.search import distribution

    assert distribution(OverridesParser.create().parse_override(override)) == expected


def test_a_search_with_failures_resumes(toy) -> None:
    toy.launcher.append("hydra/sweeper=optuna")
    space = [f"data.batch_size=1,{KILLED}", "randomness.seed=range(0,8)", "hydra.sweeper.seed=1"]
    code, output = toy.run(*space, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=4")
    assert code == 0, output

    code, output = toy.run(*space, "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4", "resume=true")
    assert code == 0, output
    assert len(toy.sweeps) == 1
    (folder,) = toy.sweeps
    study = optuna.load_study(
        study_name=folder.name, storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    )
    failed = [trial for trial in study.trials if trial.state.name == "FAIL"]
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(failed) + len(complete) == 8
    assert {trial.params["data.batch_size"] for trial in complete} == {"1"}
    assert {trial.params["data.batch_size"] for trial in failed} == {str(KILLED)}
    assert study.best_value == max(1 / (1 + trial.params["randomness.seed"]) for trial in complete)
    assert f"{study.best_value:.6g} with data.batch_size=1" in output


def test_a_trial_of_a_killed_launch_is_tried_again_first() -> None:
    from app.launch.search import requeue_unfinished

    space = {"optim.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    study = optuna.create_study()
    lost = study.ask(space)
    requeue_unfinished(study)
    assert study.ask(space).params == lost.params
    assert study.ask(space).params != lost.params


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_later_launch_draws_other_points(tmp_path: Path, sampler: str) -> None:
    from app.launch.search import open_study

    space = {"optim.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    options = {"sampler": sampler, "seed": 1, "storage": None, "direction": "maximize"}
    launches = [[open_study(options, tmp_path).ask(space).params["optim.lr"]] for _ in range(3)]
    assert len({*map(tuple, launches)}) == 3


def test_a_search_needs_results(toy) -> None:
    toy.launcher = ["hydra/launcher=slurm", "hydra.launcher.wait=false", "hydra/sweeper=optuna"]
    code, output = toy.run("data.batch_size=1,2")
    assert code != 0
    assert "remove hydra.launcher.wait=false" in output


def test_nothing_to_search(toy) -> None:
    toy.launcher.append("hydra/sweeper=optuna")
    code, output = toy.run("data.batch_size=1")
    assert code != 0
    assert "has nothing to search" in output


def test_a_search_for_the_worst_value_is_refused(terminal: Terminal) -> None:
    """What early stopping watches is what the jobs return: of a loss, the least."""
    search = ("--multirun", "hydra/sweeper=optuna", "optim.lr=interval(0.001,0.1)", "+hooks=early_stop")
    refused = terminal.run(*search, "hooks.early_stop.monitor=loss")
    assert refused.code == 64
    refused.says("direction=maximize, but the jobs return val/loss, of which less is better: set .*=minimize")
