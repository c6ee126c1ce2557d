"""Every key of the configuration: its type, default, range and documentation, once. Imports neither torch nor numpy.

Sections are never compared or printed, and making the methods for it would be half of what they add to every start.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from app.config.schema.data import DATA
from app.config.schema.hooks import DEFAULT_HOOKS, HOOKS
from app.config.schema.model import LOSSES, MODELS
from app.config.schema.optim import OPTIMS, SCHEDULES
from app.config.schema.root import AppConf
from app.config.schema.runtime import BACKENDS, DEFAULT_BACKENDS
from app.config.schema.source import OPTIONS, register_source

GROUPS: dict[str, dict[str, type]] = {
    "model": MODELS,
    "data": DATA,
    "optim": OPTIMS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "hooks": HOOKS,
    "visualizer": BACKENDS,
}
"""Config group -> option -> dataclass. A file conf/GROUP/OPTION.yaml is needed only where an option says more."""
ADDED = {"hooks": DEFAULT_HOOKS, "visualizer": DEFAULT_BACKENDS}
"""Groups whose selection adds to these, which every run has: choosing one of them by name must not reset its values."""


@cache
def register() -> None:
    """Make the schema and the groups' options known to Hydra; a second call changes nothing.

    `schema/GROUP/NAME` is the bare section, for files that extend it.
    """
    store = ConfigStore.instance().store
    store(name="app_schema", node=AppConf)
    # An `override hydra/launcher` in config.yaml would win over that of an experiment; a default of Hydra's does not.
    chosen = {"launcher": "local", "job_logging": "app"}
    defaults = [{key: chosen.get(key, value) for key, value in entry.items()} for entry in HydraConf().defaults]
    store(group="hydra", name="config", node=replace(HydraConf(), defaults=defaults), provider="hydra")
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            make = partial(_untyped if name == "custom" else OmegaConf.structured, schema)
            OPTIONS[f"schema/{group}/{name}"] = make
            if name in ADDED.get(group, ()):
                OPTIONS[f"{group}/{name}"] = partial(DictConfig, {})
            elif group in ADDED:
                OPTIONS[f"{group}/{name}"] = partial(DictConfig, {name: schema})
            elif (group, name) != ("data", "torchvision"):  # chosen as mnist, cifar10, …
                OPTIONS[f"{group}/{name}"] = make
    OPTIONS.update(dict.fromkeys((f"{group}/default" for group in ADDED), partial(DictConfig, {})))
    register_source()


def _untyped(schema: type) -> DictConfig:
    """A section for a class of the user's: to a typed one no file could add that class's arguments."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(schema))
    return DictConfig(plain)
