"""Which parameters are decayed, and how fast each one learns."""

from typing import Any

import pytest
import torch
from torch import nn

from app.errors import ConfigError
from app.models.small_cnn import SmallCNN
from app.optim.param_groups import layer_depths, param_groups


def settings(model: nn.Module, **arguments: Any) -> dict[str, tuple[float, float]]:
    """Parameter name -> (lr, weight decay)."""
    groups = param_groups(model, 0.1, 0.01, **arguments)
    for group in groups:
        assert [id(parameter) for parameter in group["params"]] == [
            id(model.get_parameter(name)) for name in group["param_names"]
        ]
    return {name: (group["initial_lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norms_and_biases_are_not_decayed() -> None:
    assert settings(net()) == {
        "0.weight": (0.1, 0.01),
        "0.bias": (0.1, 0.0),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.1, 0.0),
        "3.weight": (0.1, 0.01),
        "3.bias": (0.1, 0.0),
    }
    assert len(param_groups(net(), 0.1, 0.01)) == 2


def test_equal_settings_make_one_group_in_the_models_order() -> None:
    model = net()
    for arguments in ({"decay_norm_bias": True}, {"multipliers": {"*": {"decay": 0}}}):
        [group] = param_groups(model, 0.1, 0.01, **arguments)
        assert group["param_names"] == [name for name, _ in model.named_parameters()]
    assert len(param_groups(model, 0.1, 0.0)) == 1


def test_the_first_pattern_that_matches_counts() -> None:
    found = settings(net(), multipliers={"3.*": {"lr": 10, "decay": 0.5}, "*.weight": {"lr": 2}})
    assert found["3.weight"] == (1.0, 0.005)
    assert found["3.bias"] == (1.0, 0.0)
    assert found["0.weight"] == (0.2, 0.01)
    assert found["0.bias"] == (0.1, 0.0)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"head.*": {"lr": 2}}, r"'head\.\*' is never used: no parameter is called so \(the first: 0\.weight\)"),
        ({"*": {"lr": 2}, "3.*": {"lr": 3}}, "an earlier pattern matches all"),
        ({"3.*": {"rate": 2}}, r"must be \{lr: factor, decay: factor\}.*rate"),
        ({"3.*": 2}, "must be"),
        ({"3.*": {"lr": -1}}, r"lr must be a number >= 0, got -1"),
        ({"3.*": {"decay": "much"}}, r"decay must be a number >= 0, got much"),
    ],
)
def test_wrong_multipliers_are_named(multipliers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        param_groups(net(), 0.1, 0.01, multipliers=multipliers)


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model[0].requires_grad_(False)
    assert [name for name in settings(model) if name.startswith("0.")] == []
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that can be trained"):
        param_groups(model, 0.1, 0.0)


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert list(settings(model)) == ["0.weight"]


def test_layers_of_a_small_cnn() -> None:
    model = SmallCNN(3, 1, width=2)
    depths = layer_depths(model)
    assert [depths[f"features.{block}.{part}.weight"] for block in range(3) for part in (0, 2)] == [0, 0, 1, 1, 2, 2]
    assert depths["classifier.3.weight"] == depths["classifier.3.bias"] == 3
    assert depths.keys() == {name for name, _ in model.named_parameters()}
    found = settings(model, layer_decay=0.5)
    assert found["features.0.0.weight"] == (0.0125, 0.01)
    assert found["classifier.3.bias"] == (0.1, 0.0)


class Transformer(nn.Module):
    """The shape of a vision transformer: embeddings, a trunk of blocks with a final norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.embed = nn.Linear(2, 4)
        self.trunk = nn.Module()
        self.trunk.position = nn.Parameter(torch.zeros(1, 4))
        self.trunk.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 8) for _ in range(2))
        self.trunk.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_layers_of_a_transformer() -> None:
    depths = layer_depths(Transformer())
    assert depths["token"] == depths["trunk.position"] == depths["embed.weight"] == 0
    assert {depths[name] for name in depths if name.startswith("trunk.blocks.0.")} == {1}
    assert {depths[name] for name in depths if name.startswith("trunk.blocks.1.")} == {2}
    assert depths["trunk.norm.weight"] == 2
    assert depths["head.weight"] == 3


def test_layers_of_a_resnet() -> None:
    from torchvision.models import resnet18

    depths = layer_depths(resnet18(num_classes=3))
    assert depths["conv1.weight"] == depths["bn1.weight"] == 0
    assert [depths[f"layer{stage}.{block}.conv2.weight"] for stage in range(1, 5) for block in range(2)] == [
        *range(1, 9)
    ]
    assert depths["layer2.0.downsample.0.weight"] == depths["layer2.0.conv1.weight"]
    assert depths["fc.weight"] == 9
