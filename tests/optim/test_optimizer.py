"""Optimizers from their configuration: arguments, scaling, fused steps."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from app.config.schema.optim import OPTIMS
from app.errors import ConfigError
from app.optim import optimizer
from app.optim.optimizer import build_optimizer, describe


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def conf(option: str, **changes: Any) -> dict[str, Any]:
    return asdict(OPTIMS[option](**changes))


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(torch.randn(8, 6, generator=generator)), torch.randint(3, (8,), generator=generator)
        )
        loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_trains_like_torchs_own_with_the_same_settings(name: str) -> None:
    model, reference = net(), net()
    optimizer = build_optimizer(model, conf(name, weight_decay=0.1), global_batch=8)
    decayed = [parameter for parameter in reference.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in reference.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    arguments = {
        "sgd": {"lr": 0.05, "momentum": 0.9},
        "adam": {"lr": 1e-3},
        "adamw": {"lr": 1e-3},
        "rmsprop": {"lr": 1e-3},
    }[name]
    expected = train(type(optimizer)(groups, **arguments), reference)
    for ours, theirs in zip(train(optimizer, model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_every_group_has_its_base_rate_and_its_parameters_names() -> None:
    model = net()
    optimizer = build_optimizer(model, conf("adamw"), global_batch=8)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(group["initial_lr"] == group["lr"] == 1e-3 for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == optimizer.param_groups[0]["param_names"]


def test_lr_scales_with_the_global_batch() -> None:
    scaling = {"enable": True, "base_batch_size": 256}
    optimizer = build_optimizer(net(), conf("sgd", lr=0.1, lr_scaling=scaling), global_batch=64 * 8)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.2}


@pytest.mark.parametrize(("name", "fused"), [("sgd", True), ("adam", True), ("adamw", True), ("rmsprop", False)])
def test_fused_where_torch_has_it(name: str, fused: bool) -> None:
    optimizer = build_optimizer(net(), conf(name), global_batch=8)
    assert bool(optimizer.defaults.get("fused")) is fused
    assert ("(fused)" in describe(optimizer)) is fused


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}])
def test_what_the_user_says_about_the_implementation_counts(choice: dict[str, bool]) -> None:
    optimizer = build_optimizer(net(), conf("adamw", args=choice), global_batch=8)
    assert not optimizer.defaults["fused"]


def test_fused_steps_work_with_a_gradient_scaler() -> None:
    """fp16 training on a CPU: gradients are unscaled inside the fused step, and an overflow skips it."""
    results = []
    for args in ({}, {"fused": False}):
        model = net()
        optimizer = build_optimizer(model, conf("sgd", args=args), global_batch=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for scale in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 6)).square().sum() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([parameter.detach() for parameter in model.parameters()])
        assert scaler.get_scale() == 512.0
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["NAdam", "Adagrad", "Rprop", "Adafactor"])
def test_any_of_torchs_by_name(name: str) -> None:
    model = net()
    optimizer = build_optimizer(model, conf("torch", name=name), global_batch=8)
    assert type(optimizer) is getattr(torch.optim, name)
    train(optimizer, model, steps=1)


def test_by_name_passes_its_arguments_on() -> None:
    settings = conf("torch", name="SGD", args={"momentum": 0.5})
    assert build_optimizer(net(), settings, global_batch=8).defaults["momentum"] == 0.5
    assert optimizer.by_name([torch.zeros(1, requires_grad=True)], "SGD", lr=0.3).defaults["lr"] == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (conf("torch", name="NAdm"), r"optim\.name: .*'NAdm'; did you mean 'NAdam'\?"),
        (conf("torch", name="LBFGS"), r"optim\.name: .*'LBFGS'"),
        (conf("torch", name="Muon"), r"optim: .*Muon refuses its arguments"),
        (conf("torch", name="SGD", args={"momentm": 0.9}), r"optim\.args\.momentm .*did you mean 'momentum'"),
        (conf("sgd", args={"weight_decay": 0.9}), r"optim\.args\.weight_decay is not"),
        (conf("torch", name="Rprop", weight_decay=0.1), r"optim\.weight_decay=0\.1: .*Rprop knows no weight decay"),
        (conf("sgd", momentum=0.0, nesterov=True), r"refuses its arguments: Nesterov"),
        (conf("custom", _target_="torch.optim.lr_scheduler.StepLR", lr=0.1), "refuses its arguments"),
        (conf("custom", _target_="torch.nn.Identity", lr=0.1), "made a Identity, not an optimizer"),
        (conf("custom", _target_="os.system", lr=0.1), "not trusted"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(net(), settings, global_batch=8)


class Own(torch.optim.SGD):
    """A user's optimizer, with an argument that it calls as ours are called."""

    def __init__(self, params: Any, lr: float, name: str) -> None:
        super().__init__(params, lr)
        self.name = name


def test_a_users_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_TRUSTED_PACKAGES", __name__.partition(".")[0])
    settings = conf("custom", _target_=f"{__name__}.Own", lr=0.1) | {"name": "mine"}
    optimizer = build_optimizer(net(), settings, global_batch=8)
    assert isinstance(optimizer, Own)
    assert optimizer.name == "mine"
    assert not optimizer.defaults["fused"]
    with pytest.raises(ConfigError, match="knows no weight decay"):
        build_optimizer(net(), settings | {"weight_decay": 0.1}, global_batch=8)
