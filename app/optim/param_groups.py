"""Parameter groups: which parameters are decayed, and how fast each one learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from app.errors import ConfigError


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_norm_bias: bool = False,
    layer_decay: float | None = None,
    multipliers: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of equal settings, in the model's own order.

    Parameters of less than two dimensions are those of norms, and biases. Of `multipliers`, the first pattern that
    matches a name counts; its factors come on top of the rest.

    Raises:
        ConfigError: a pattern matches no parameter, or there is nothing to train.
    """
    patterns = dict(multipliers or {})
    depth = layer_depths(model) if layer_decay is not None else {}
    last = max(depth.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        rate = lr if layer_decay is None else lr * layer_decay ** (last - depth[name])
        decay = weight_decay if parameter.ndim > 1 or decay_norm_bias else 0.0
        pattern = next((each for each in patterns if fnmatchcase(name, each)), None)
        if pattern is not None:
            used.add(pattern)
            factors = _checked_factors(pattern, patterns[pattern])
            rate, decay = rate * factors.get("lr", 1.0), decay * factors.get("decay", 1.0)
        if not parameter.requires_grad:
            continue
        settings = {"lr": rate, "initial_lr": rate, "weight_decay": decay}
        group = groups.setdefault((rate, decay), {"params": [], "param_names": [], **settings})
        group["params"].append(parameter)
        group["param_names"].append(name)
    for pattern in patterns.keys() - used:
        names = [name for name, _ in model.named_parameters()]
        hidden = any(fnmatchcase(name, pattern) for name in names)
        why = (
            "an earlier pattern matches all that it would"
            if hidden
            else f"no parameter is called so (the first: {names[0]})"
        )
        raise ConfigError(f"optim.multipliers: the pattern '{pattern}' is never used: {why}")
    if not groups:
        raise ConfigError("optim: the model has no parameter that can be trained")
    return list(groups.values())


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Parameter name -> number of its layer, from 0 at the input, in the order in which the model registers its parts.

    A layer is a direct child of the model. nn.Sequential, nn.ModuleList, and a child that holds more than half of the
    model's parameters (a trunk) are opened, and their children are layers. A part of norms only belongs to the layer
    before it. Parameters that an opened module holds itself (class tokens, position embeddings) are layer 0.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    layers: list[list[str]] = []
    loose: list[str] = []
    for path, module, opened in _parts(model, "", total):
        own = [f"{path}{name}" for name, _ in module.named_parameters(recurse=not opened)]
        if opened:
            loose += own
        elif layers and all(parameter.ndim <= 1 for parameter in module.parameters()):
            layers[-1] += own
        elif own:
            layers.append(own)
    depths = {name: depth for depth, names in enumerate(layers) for name in names}
    return dict.fromkeys(loose, 0) | depths


def _parts(module: nn.Module, path: str, total: int) -> Iterator[tuple[str, nn.Module, bool]]:
    """(path with a final dot, module, opened?) for `module`, which is opened, and all below it down to the layers."""
    yield path, module, True
    for name, child in module.named_children():
        size = sum(parameter.numel() for parameter in child.parameters())
        has_children = next(child.children(), None) is not None
        if isinstance(child, (nn.Sequential, nn.ModuleList)) or (has_children and 2 * size > total):
            yield from _parts(child, f"{path}{name}.", total)
        else:
            yield f"{path}{name}.", child, False


def _checked_factors(pattern: str, factors: Any) -> Mapping[str, float]:
    key = f"optim.multipliers.'{pattern}'"
    if not isinstance(factors, Mapping) or not factors or factors.keys() - {"lr", "decay"}:
        raise ConfigError(f"{key} must be {{lr: factor, decay: factor}} or one of the two, got {factors}")
    for name, value in factors.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(f"{key}.{name} must be a number >= 0, got {value}")
    return factors
