"""Choosing hooks, trackers and a launcher: what is always there, what is added, what a file's choice is worth."""

import re

import pytest
import yaml
from invocation import Terminal

DEFAULTS = ["checkpoint", "logger", "class_num_check", "preempt", "visualization"]
TINY = ["data=fake", "data.size=16", "data.val_size=8", "data.image_size=8", "train.max_epochs=1", "schedule=constant"]


def composed(terminal: Terminal, *arguments: str) -> dict[str, dict[str, dict[str, object]]]:
    """What `--cfg job` prints."""
    outcome = terminal.run(*arguments, "--cfg", "job")
    assert outcome.code == 0, outcome.message
    assert "Warning" not in outcome.message
    config: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(outcome.out)
    return config


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("", []),
        ("hooks=ema", ["ema"]),
        ("hooks=[ema,early_stop]", ["ema", "early_stop"]),
        ("+hooks=ema", ["ema"]),
        ("+hooks=[ema,early_stop]", ["ema", "early_stop"]),
        ("hooks=[default,ema]", ["ema"]),
        ("hooks=[ema] +hooks=early_stop", ["ema", "early_stop"]),
        ("hooks=ema +hooks=[early_stop,profiler]", ["ema", "early_stop", "profiler"]),
        ("hooks=checkpoint", []),
        ("hooks=[logger,default]", []),
        ("hooks=[]", []),
    ],
)
def test_hooks_are_added_to_the_default_ones(terminal: Terminal, line: str, added: list[str]) -> None:
    hooks = composed(terminal, *line.split())["hooks"]
    assert list(hooks) == [*DEFAULTS, *added]
    assert hooks["checkpoint"]["max_keep_ckpts"] == 3
    assert hooks["checkpoint"]["save_best"] == "auto"
    assert hooks["visualization"]["enable"] is False


def test_a_default_hook_is_changed_by_its_keys_and_removed_by_null(terminal: Terminal) -> None:
    assert composed(terminal, "hooks.visualization.enable=true")["hooks"]["visualization"]["enable"] is True
    assert composed(terminal, "hooks=visualization")["hooks"]["visualization"]["enable"] is True
    assert composed(terminal, "hooks=[visualization,default]")["hooks"]["visualization"]["enable"] is True
    assert composed(terminal, "hooks=ema", "hooks.checkpoint=null")["hooks"]["checkpoint"] is None


def test_trackers_are_added_to_the_local_page(terminal: Terminal) -> None:
    for line in ("visualizer=tensorboard", "+visualizer=tensorboard", "visualizer=[local,tensorboard]"):
        assert list(composed(terminal, line)["visualizer"]) == ["local", "tensorboard"]
    assert composed(terminal, "visualizer=tensorboard", "visualizer.local=null")["visualizer"]["local"] is None


@pytest.mark.parametrize(
    ("line", "group"), [("hooks=null", "hooks"), ("~hooks", "hooks"), ("visualizer=null", "visualizer")]
)
def test_null_for_all_of_them_has_an_answer(terminal: Terminal, line: str, group: str) -> None:
    outcome = terminal.run(line)
    outcome.says(rf"error: {group}=null: .* always there; leave one out with {group}\.NAME=null")
    assert outcome.code == 64


def test_hooks_ema_trains_with_checkpoints_lines_and_a_page(terminal: Terminal) -> None:
    outcome = terminal.run("hooks=ema", "hydra.run.dir=run", *TINY)
    assert outcome.code == 0, outcome.message
    outcome.says(r"epoch 1/1")
    assert list((terminal.folder / "run/checkpoints").glob("*.json"))
    assert (terminal.folder / "run/vis_data/report.html").is_file()


def test_a_sweep_over_selections_runs_each(terminal: Terminal) -> None:
    outcome = terminal.run(
        "--multirun", "hooks=[default],[default,ema]", "output_root=out", "hydra.launcher.start=fresh", *TINY
    )
    assert outcome.code == 0, outcome.message
    points = sorted(path.parent.name for path in terminal.folder.glob("out/*/sweep_*/*/checkpoints"))
    assert len(points) == 2


EXPERIMENT = "# @package _global_\ndefaults: [{override /hooks: [ema]}]\nname: mine\n"


def test_what_replaces_an_experiment_s_hooks_says_so(terminal: Terminal) -> None:
    terminal.write({"own/experiment/mine.yaml": EXPERIMENT})
    line = ("--config-dir", "own", "experiment=mine")
    assert list(composed(terminal, *line)["hooks"]) == [*DEFAULTS, "ema"]
    assert list(composed(terminal, *line, "+hooks=early_stop")["hooks"]) == [*DEFAULTS, "ema", "early_stop"]
    stop = ("hydra.run.dir=run", *TINY, "load_from=nothing.pth")  # far enough to see it
    outcome = terminal.run(*line, "hooks=early_stop", *stop)
    outcome.says(
        r"warning: hooks=early_stop replaces hooks=\[ema\] of a file; to keep ema too write \+hooks=early_stop"
    )
    for kept in ("hooks=[ema,early_stop]", "+hooks=early_stop"):
        assert not re.search("warning: hooks", terminal.run(*line, kept, *stop).message)


def test_a_file_of_the_user_s_takes_the_place_of_an_option(terminal: Terminal) -> None:
    terminal.write({"own/model/mlp.yaml": "_target_: app.models.lenet.LeNet5\n"})
    model = composed(terminal, "--config-dir", "own", "model=mlp")["model"]
    assert model == {"_target_": "app.models.lenet.LeNet5"}


def test_an_experiment_chooses_launcher_and_logging(terminal: Terminal) -> None:
    chosen = "defaults: [{override /hydra/launcher: slurm}, {override /hydra/job_logging: stdout}]\n"
    terminal.write({"own/experiment/mine.yaml": f"# @package _global_\n{chosen}"})
    for sweep in ([], ["--multirun"]):
        outcome = terminal.run(*sweep, "--config-dir", "own", "experiment=mine", "--cfg", "hydra")
        assert outcome.code == 0, outcome.message
        hydra = yaml.safe_load(outcome.out)["hydra"]
        assert hydra["launcher"]["_target_"].endswith("SlurmLauncher")
        assert hydra["runtime"]["choices"]["hydra/job_logging"] == "stdout"
    terminal.run("--config-dir", "own", "experiment=mine", "load_from=nothing.pth").says(
        "warning: hydra/launcher has no"
    )
