"""The optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from app.config.targets import resolve
from app.errors import ConfigError
from app.optim.param_groups import param_groups
from app.suggest import did_you_mean

OWN_KEYS = frozenset(
    {"_target_", "lr", "weight_decay", "decay_norm_bias", "layer_decay", "multipliers", "lr_scaling", "args"}
)
"""Keys of OptimConf that are ours; all others are arguments of the class."""


def build_optimizer(model: nn.Module, conf: Mapping[str, Any], *, global_batch: int) -> torch.optim.Optimizer:
    """The optimizer of an `OptimConf` given as plain values; `global_batch` is the images of a step over all ranks.

    Each group has its base rate as `initial_lr` and its parameters' names as `param_names`. torch's own classes are
    made with fused=True where that is supported, unless `args` says something about it.

    Raises:
        ConfigError: a target, argument or pattern is wrong, or nothing in the model can be trained.
    """
    found = _class_of(conf)
    lr, scaling = conf["lr"], conf["lr_scaling"]
    if scaling["enable"]:
        lr *= global_batch / scaling["base_batch_size"]
    groups = param_groups(
        model,
        lr,
        conf["weight_decay"],
        decay_norm_bias=conf["decay_norm_bias"],
        layer_decay=conf["layer_decay"],
        multipliers=conf["multipliers"],
    )
    arguments = _arguments(conf, found)
    if _can_fuse(found, arguments, groups):
        arguments["fused"] = True
    try:
        optimizer = found(groups, lr=lr, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optim: {_title(found)} refuses its arguments: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optim._target_: {_title(found)} made a {type(optimizer).__name__}, not an optimizer of torch"
        )
    return optimizer


def by_name(params: Any, name: str, **arguments: Any) -> torch.optim.Optimizer:
    """The optimizer of torch.optim called `name`; ConfigError, with the nearest name, when there is none."""
    return torch_class(name)(params, **arguments)


def torch_class(name: str) -> type[torch.optim.Optimizer]:
    """torch.optim's class `name`; ConfigError, with the nearest name, when there is none."""
    classes = {
        each: found
        for each, found in vars(torch.optim).items()
        if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
    }
    # These need a closure, or gradients that are sparse.
    for unusable in ("LBFGS", "SparseAdam"):
        classes.pop(unusable, None)
    if name not in classes:
        raise ConfigError(
            f"optim.name: torch.optim has no optimizer '{name}'{did_you_mean(name, classes)} "
            f"(names: {', '.join(sorted(classes))})"
        )
    return classes[name]


def describe(optimizer: torch.optim.Optimizer) -> str:
    """One line for the log: class, implementation, and the settings of each group."""
    kind = next((f" ({name})" for name in ("fused", "foreach") if optimizer.defaults.get(name)), "")
    groups = [
        f"{len(group['params'])} tensors with lr {group['initial_lr']:.3g}, weight decay {group['weight_decay']:.3g}"
        for group in optimizer.param_groups
    ]
    shown = groups if len(groups) <= 4 else [*groups[:2], f"{len(groups) - 3} more groups", groups[-1]]
    return f"{type(optimizer).__name__}{kind}: {'; '.join(shown)}"


def _class_of(conf: Mapping[str, Any]) -> Callable[..., Any]:
    found = resolve(conf["_target_"], "optim")
    return torch_class(conf["name"]) if found is by_name else found


def _arguments(conf: Mapping[str, Any], found: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of the class beside lr and parameters, all of which it takes."""
    own = OWN_KEYS | {"name"} if conf["_target_"] == _title(by_name) else OWN_KEYS
    direct = {name: value for name, value in conf.items() if name not in own}
    more = conf["args"] or {}
    accepted = _accepted(found)
    if accepted is None:
        return {**direct, **more}
    if conf["weight_decay"] and "weight_decay" not in accepted:
        raise ConfigError(
            f"optim.weight_decay={conf['weight_decay']}: {_title(found)} knows no weight decay; set it to 0"
        )
    for key, given in (("optim", direct), ("optim.args", more)):
        names = sorted(accepted - {"lr", "weight_decay"})
        for name in given:
            if name not in names:
                raise ConfigError(
                    f"{key}.{name} is not an argument of {_title(found)} that can be given here"
                    f"{did_you_mean(name, names)} (arguments: {', '.join(names)})"
                )
    return {name: tuple(value) if name == "betas" else value for name, value in {**direct, **more}.items()}


def _accepted(found: Callable[..., Any]) -> set[str] | None:
    """The names of the arguments of `found`; None when it takes any."""
    parameters = inspect.signature(found).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} - {"params"}


def _can_fuse(found: Callable[..., Any], arguments: Mapping[str, Any], groups: list[dict[str, Any]]) -> bool:
    """True for torch's own classes with a fused step for parameters like these, when nothing else is asked for."""
    if not found.__module__.startswith("torch.optim") or "fused" not in (_accepted(found) or ()):
        return False
    if any(arguments.get(name) is not None for name in ("fused", "foreach")) or arguments.get("differentiable"):
        return False
    return all(
        parameter.device.type in ("cpu", "cuda", "mps") and parameter.is_floating_point()
        for group in groups
        for parameter in group["params"]
    )


def _title(found: Callable[..., Any]) -> str:
    return f"{found.__module__}.{found.__qualname__}"
