"""What a `_target_` names must be of the kind that its place takes."""

import pytest
from invocation import Terminal

from app.config.arguments import argument_problems
from app.config.kinds import kind_problem
from app.config.targets import refusal, resolve


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "torchvision.models.resnet18"),
        ("model", "torchvision.models.resnet.ResNet"),
        ("model", "timm.create_model"),
        ("model", "timm.models.resnet.resnet18"),
        ("model", "app.models.mlp.MLP"),
        ("model.encoder", "torchvision.models.resnet18"),
        ("optim", "torch.optim.Adagrad"),
        ("schedule.scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("metrics.extra.kappa", "torchmetrics.CohenKappa"),
        ("data.augment.mine", "torchvision.transforms.v2.GaussianBlur"),
        ("hooks.second", "app.hooks.ema.EMA"),
    ],
)
def test_parts_that_belong(key: str, target: str) -> None:
    assert refusal(target, key) is None
    assert kind_problem(resolve(target, key), target, key) is None


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("model", "torch.optim.SGD"),
        ("model", "torchvision.datasets.folder.pil_loader"),
        ("model", "torch.nn.Module.load_state_dict"),
        ("model", "torch.nn.init.ones_"),
        ("model", "app.data.folder.folder"),
        ("model.loader", "torchvision.datasets.folder.pil_loader"),
        ("optim", "torch.nn.Linear"),
        ("schedule", "torch.optim.lr_scheduler.StepLR"),
        ("metrics.extra.kappa", "torchmetrics.functional.accuracy"),
        ("data", "torchvision.datasets.folder.pil_loader"),
        ("data.augment.mine", "torchvision.datasets.folder.default_loader"),
        ("hooks.x", "app.data.folder.folder"),
        ("hooks.x", "app.visualizer.local.Local"),
        ("visualizer.x", "app.hooks.ema.EMA"),
    ],
)
def test_parts_that_do_not_belong(key: str, target: str) -> None:
    problems = argument_problems(nested(key, {"_target_": target}))
    assert any("does not belong here; this place takes" in problem for problem in problems), problems


def nested(key: str, node: dict[str, object]) -> dict[str, object]:
    """`a.b`, node -> {a: {b: node}}"""
    for part in reversed(key.split(".")):
        node = {part: node}
    return node


@pytest.mark.parametrize(
    "target", ["torchvision.models._api.get_model", "timm.models._factory.create_model", "app.models.mlp._hidden"]
)
def test_private_names_are_refused_unimported(target: str) -> None:
    assert "is not trusted" in str(refusal(target, "model"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {_target_: torchvision.datasets.folder.pil_loader, path: /etc/hostname}", "does not belong here"),
        ("model: {_target_: torchvision.models._api.get_model, name: resnet18}", "is not trusted"),
        (
            "hydra: {job: {env_set: {GIT_SSH_COMMAND: touch trap}}}",
            r"env_set\.GIT_SSH_COMMAND is set in a file",
        ),
    ],
)
def test_a_file_runs_nothing_of_that_kind(terminal: Terminal, text: str, says: str) -> None:
    override = "defaults: [{override /model: custom}]\n" if text.startswith("model") else ""
    terminal.write({"own/experiment/evil.yaml": f"# @package _global_\n{override}{text}\n"})
    for sweep in ([], ["--multirun"]):
        outcome = terminal.run(*sweep, "--config-dir", "own", "experiment=evil", "output_root=out")
        outcome.says(says)
        assert outcome.code == 64 or sweep


def test_the_command_line_may_set_variables(terminal: Terminal) -> None:
    small = ("model=mlp", "data.limit_train=64", "train.max_epochs=1", "output_root=out")
    assert terminal.run("+hydra.job.env_set.MY_VARIABLE=1", *small).code == 0
