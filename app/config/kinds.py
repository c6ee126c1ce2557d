"""Does what a `_target_` names fit its place: a module class for the model, an optimizer for `optim`, and so on?

A trusted library holds more than parts of an experiment: functions that open files, builders that unpickle downloads.
So what is called from a library, or from this program, is a class of the kind that its place takes, or a model builder
that the library itself lists. Packages that the user trusts are taken at their word.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from app.config.schema import GROUPS

LIBRARIES = ("app", "timm", "torch", "torchmetrics", "torchvision")
BASES = {
    "module": ("torch.nn", "Module"),
    "optimizer": ("torch.optim", "Optimizer"),
    "scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
    "metric": ("torchmetrics", "Metric"),
    "dataset": ("torch.utils.data", "Dataset"),
    "hook": ("app.core.hook", "Hook"),
}
"""Kind -> module and name of its base class; imported only where something else than an option is named."""
PLACES: Mapping[str, tuple[str, ...]] = {
    "model": ("module",),
    "optim": ("optimizer",),
    "schedule": (),
    "schedule.scheduler": ("scheduler",),
    "loss": ("module",),
    "data": ("dataset",),
    "data.augment": ("module", "transform"),
    "metrics.extra": ("metric",),
    "hooks": ("hook",),
    "visualizer": (),
}
"""Place -> the kinds that it takes beside the options of its group; elsewhere, in arguments, all but hooks."""


def kind_problem(found: Any, target: str, key: str) -> str | None:
    """Why `found`, what `target` names, does not belong at `key`; None when it does."""
    if target.partition(".")[0] not in LIBRARIES or is_option(target, key):
        return None
    place = key if key in PLACES else key.rpartition(".")[0]
    kinds = PLACES.get(place, ("module", "optimizer", "scheduler", "metric", "dataset", "transform"))
    if inspect.isclass(found) and any(is_kind(found, kind) for kind in kinds):
        return None
    if "module" in kinds and is_listed_builder(found):
        return None
    what = "a class" if inspect.isclass(found) else "a function"
    group = key.partition(".")[0]
    options = f"an option of the group {group}" if group in GROUPS else "a class of your own"
    wanted = " or ".join(
        [*(f"a subclass of {'.'.join(BASES.get(kind, ('a torchvision', kind)))}" for kind in kinds), options]
    )
    return f"{key}._target_: {target} is {what} that does not belong here; this place takes {wanted}"


def is_option(target: str, key: str) -> bool:
    """True for the target of an option of the group that `key` is of."""
    group, _, name = key.partition(".")
    if group not in GROUPS or (name and (group not in ("hooks", "visualizer") or "." in name)):
        return False
    return any(getattr(schema, "_target_", None) == target for schema in GROUPS[group].values())


def is_kind(found: type, kind: str) -> bool:
    if kind == "transform":  # most are modules; Compose and the like are plain classes
        return found.__module__.startswith("torchvision.transforms.")
    module, name = BASES[kind]
    __import__(module)
    return issubclass(found, getattr(sys.modules[module], name))


def is_listed_builder(found: Any) -> bool:
    """True for a function that torchvision or timm lists as the builder of a model of that name, and create_model."""
    name, top = getattr(found, "__name__", ""), str(getattr(found, "__module__", "")).partition(".")[0]
    if top == "torchvision":
        from torchvision.models import get_model_builder, list_models

        return name in list_models() and get_model_builder(name) is found
    if top == "timm":
        import timm

        return found is timm.create_model or (timm.is_model(name) and timm.model_entrypoint(name) is found)
    return False
