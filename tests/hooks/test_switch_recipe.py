from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, make, tiny_run, train

from app.config.data_rules import augmentation
from app.config.schema.hooks import SwitchRecipeConf
from app.core.state import Run
from app.errors import ConfigError
from app.metrics.losses import cross_entropy

SCHEDULE = [
    {"epoch": 1, "augment": ["flip"], "batch_augment": {"mixup": {"alpha": 0.2}}},
    {"epoch": 3, "augment": None, "loss": {"label_smoothing": 0.1}},
]


def used_loss(run: Run) -> float:
    return float(run.loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])))


def loss(smoothing: float) -> float:
    return float(cross_entropy(smoothing)(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])))


def test_switches_from_its_epochs_on(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, length=4)
    recipes = Recorder("step_end", lambda run: (run.data.recipes[-1:], used_loss(run)))
    train(run, {"switch_recipe": make(SwitchRecipeConf(schedule=SCHEDULE)), "recipes": recipes})
    base, second, third = (
        (["crop"], None),
        (["flip"], SCHEDULE[0]["batch_augment"]),
        (None, SCHEDULE[0]["batch_augment"]),
    )
    by_epoch = [recipes.seen[3 * epoch : 3 * epoch + 3] for epoch in range(4)]
    assert by_epoch[0] == [([base], loss(0.0))] * 3
    assert by_epoch[1] == by_epoch[2] == [([second], loss(0.0))] * 3
    assert by_epoch[3] == [([third], loss(0.1))] * 3
    assert loss(0.1) != loss(0.0)


def test_trying_the_schedule_out_leaves_the_base_in_force(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    make(SwitchRecipeConf(schedule=SCHEDULE)).attach(run)
    assert run.data.recipes[-1] == (["crop"], None)  # type: ignore[attr-defined]
    assert used_loss(run) == loss(0.0)


@pytest.mark.parametrize(
    ("epoch", "batch", "augment", "smoothing"),
    [(0, 2, ["crop"], 0.0), (1, 0, ["flip"], 0.0), (2, 1, ["flip"], 0.0), (3, 0, None, 0.1), (9, 1, None, 0.1)],
)
def test_a_resumed_run_has_the_recipe_of_its_epoch(
    epoch: int, batch: int, augment: Any, smoothing: float, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path)
    hook = make(SwitchRecipeConf(schedule=SCHEDULE))
    hook.attach(run)
    run.state.progress.epoch, run.state.progress.batch = epoch, batch
    hook.epoch_start(run)
    assert run.data.recipes[-1][0] == augment  # type: ignore[attr-defined]
    assert used_loss(run) == loss(smoothing)


def test_an_evaluation_that_a_resume_begins_with_has_the_recipe_of_the_epoch_before(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    hook = make(SwitchRecipeConf(schedule=SCHEDULE))
    hook.attach(run)
    run.state.progress.epoch, run.state.progress.batch = 3, 0
    with hook.evaluating(run):
        assert run.data.recipes[-1][0] == ["flip"]  # type: ignore[attr-defined]
        assert used_loss(run) == loss(0.0)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([{"augment": None}], "schedule[0].epoch must be a whole number >= 0, got None"),
        ([{"epoch": 1, "augmnt": None}], "unknown key 'hooks.switch_recipe.schedule[0].augmnt'; did you mean"),
        ([{"epoch": 2, "augment": None}, {"epoch": 1, "augment": None}], "must rise from entry to entry, got [2, 1]"),
        ([{"epoch": 1, "augment": None}, {"epoch": 1, "augment": None}], "must rise from entry to entry, got [1, 1]"),
        ([3], "schedule[0] must be a mapping"),
        ([{"epoch": 1, "loss": "bce"}], "schedule[0].loss must be a mapping like `loss`, got 'bce'"),
        (
            [{"epoch": 1, "loss": {"label_smooth": 0.1}}],
            "unknown key 'hooks.switch_recipe.schedule[0].loss.label_smooth'",
        ),
        ([{"epoch": 1, "loss": {"label_smoothing": 3}}], "schedule[0].loss.label_smoothing must be in [0, 1), got 3"),
        ([{"epoch": 1, "loss": {"kind": "bcee"}}], "schedule[0].loss.kind must be one of cross_entropy, bce; got bcee"),
    ],
)
def test_bad_schedules(schedule: list[Any], message: str) -> None:
    config = {"data": {}, "hooks": {"switch_recipe": {"schedule": schedule}}}
    problems = list(augmentation(config, ()))
    assert len(problems) == 1
    assert message in problems[0]


def test_an_unknown_name_is_an_error_before_training(tmp_path: Path) -> None:
    class Strict:
        def set_recipe(self, augment: Any, batch_augment: Any) -> None:
            if augment == ["flop"]:
                raise ConfigError("no such augmentation: flop")

    run = tiny_run(tmp_path)
    run.data.set_recipe = Strict().set_recipe  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="flop"):
        make(SwitchRecipeConf(schedule=[{"epoch": 2, "augment": ["flop"]}])).attach(run)
