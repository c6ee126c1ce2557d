"""torchvision's classification models by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from app.errors import ConfigError


def torchvision_model(
    name: str, num_classes: int, in_channels: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """torchvision's model `name` with random weights, its first convolution remade when `in_channels` is not 3.

    Raises:
        ConfigError: no classification model has this name, or it does not take `args`.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}" if near else ""
        raise ConfigError(
            f"model.name: torchvision has no classifier {name!r}{hint}; see torchvision.models.list_models()"
        )
    arguments = dict(args or {})
    if name in ("googlenet", "inception_v3"):
        # In training their auxiliary heads make the output a tuple; without an explicit value torchvision warns.
        arguments = {"aux_logits": False, "init_weights": True} | arguments
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.args: torchvision's {name} refuses {dict(args or {})}: {error}") from error
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _with_channels(module, in_channels))
            return


def _with_channels(old: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """`old` for another number of input channels, with weights of the same spread for the fan-in."""
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        old.groups,
        old.bias is not None,
        old.padding_mode,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new
