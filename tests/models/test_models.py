"""The models' shapes, what they refuse, and that constructors and schema agree."""

import inspect
import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch
from hydra.utils import get_method
from invocation import Terminal

from app.config.schema.model import MODELS
from app.errors import ConfigError
from app.models.lenet import LeNet5
from app.models.mlp import MLP
from app.models.resnet_cifar import resnet_cifar
from app.models.small_cnn import SmallCNN
from app.models.torchvision_model import torchvision_model


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"custom"}))
def test_constructor_arguments_are_the_schemas_fields_with_its_defaults(name: str) -> None:
    schema = MODELS[name]
    parameters = inspect.signature(get_method(schema._target_)).parameters
    known = {field.name: field for field in fields(schema) if field.name not in ("_target_", "init")}
    assert parameters.keys() == known.keys()
    for key, parameter in parameters.items():
        if parameter.default is not parameter.empty and parameter.default is not None:
            field = known[key]
            default = field.default_factory() if callable(field.default_factory) else field.default
            assert parameter.default == (tuple(default) if isinstance(default, list) else default)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet5(7, 1), (1, 28, 28)),
        (LeNet5(7, 3), (3, 32, 32)),
        (SmallCNN(7, 1, width=4), (1, 8, 8)),
        (SmallCNN(7, 3, width=4), (3, 33, 40)),
        (MLP(7, 3, 5, hidden=[4, 6], dropout=0.5), (3, 5, 5)),
        (MLP(7, 1, 5, hidden=[]), (1, 5, 5)),
    ],
)
def test_logits_for_each_class_and_gradients_everywhere(model: torch.nn.Module, shape: tuple[int, ...]) -> None:
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lenet_is_the_papers_network() -> None:
    assert sum(parameter.numel() for parameter in LeNet5(10, 1).parameters()) == 61_706


def test_lenet_refuses_other_image_sizes() -> None:
    with pytest.raises(ConfigError, match="28x28 or 32x32 images, got 8x8"):
        LeNet5(10, 1)(torch.zeros(1, 1, 8, 8))


def test_resnet_keeps_small_images_large() -> None:
    model = resnet_cifar(7, 1, depth=18).eval()
    seen: list[torch.Size] = []
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert seen == [(1, 64, 32, 32)]
    assert sum(parameter.numel() for parameter in resnet_cifar(10, 3).parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("name", "channels", "args"),
    [("squeezenet1_1", 1, {"dropout": 0.0}), ("shufflenet_v2_x0_5", 4, {}), ("mobilenet_v3_small", 3, {})],
)
def test_torchvision_models_by_name_for_any_channels(name: str, channels: int, args: dict[str, Any]) -> None:
    model = torchvision_model(name, 7, channels, args).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, channels, 64, 64))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("channels", [(), ("+model.in_chans=1",), ("model.in_channels=1",)])
def test_a_timm_model_gets_classes_and_channels(terminal: Terminal, channels: tuple[str, ...]) -> None:
    """Through its `**kwargs`; by the public name of a builder that timm keeps in a private module."""
    timm = ("model=custom", "model._target_=timm.create_model", "+model.model_name=resnet10t")
    outcome = terminal.run(*timm, *channels, "data.limit_train=8", "data.limit_val=8", "check=true")
    outcome.says(r"ResNet: \d+ parameters; .* 1x8x8, 10 classes", "check passed")
    wrong = terminal.run(*timm, "model.in_channels=3", "data.limit_train=8", "data.limit_val=8", "check=true")
    wrong.says("the model takes images of 3 channel")


def test_a_torchvision_builder_by_its_own_name_gets_classes(terminal: Terminal) -> None:
    builder = ("model=custom", "model._target_=torchvision.models.squeezenet1_1")
    data = ("data=fake", "data.channels=3", "data.num_classes=4", "data.size=16", "data.val_size=8")
    terminal.run(*builder, *data, "check=true").says("SqueezeNet: .* 4 classes", "check passed")


def test_torchvision_models_with_auxiliary_heads_give_one_output() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = torchvision_model("googlenet", 7, 3, {"init_weights": False})
    assert isinstance(model.train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_torchvision_refuses_unknown_names_and_arguments() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: .*'resnet81'.*resnet18"):
        torchvision_model("resnet81", 7, 3)
    with pytest.raises(ConfigError, match=r"model\.name: .*'fcn_resnet50'"):
        torchvision_model("fcn_resnet50", 7, 3)
    with pytest.raises(ConfigError, match=r"model\.args: .*resnet18 refuses.*widht"):
        torchvision_model("resnet18", 7, 3, {"widht": 2})
