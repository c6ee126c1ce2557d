"""Every key of the configuration: its type, default, range and documentation, once. Imports neither torch nor numpy.

Sections are never compared or printed, and making the methods for it would be half of what they add to every start.
"""

from functools import cache, partial
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from app.config.schema.data import DATA
from app.config.schema.hooks import HOOKS
from app.config.schema.model import MODELS
from app.config.schema.optim import OPTIMS, SCHEDULES
from app.config.schema.root import AppConf
from app.config.schema.runtime import BACKENDS
from app.config.schema.store import store_lazily

GROUPS: dict[str, dict[str, type]] = {
    "model": MODELS,
    "data": DATA,
    "optim": OPTIMS,
    "schedule": SCHEDULES,
    "hooks": HOOKS,
    "visualizer": BACKENDS,
}
"""Config group -> name -> dataclass; `conf/GROUP/NAME.yaml` extends `schema/GROUP/NAME`."""


@cache
def register() -> None:
    """Puts the schema into Hydra's store; a second call changes nothing."""
    ConfigStore.instance().store(name="app_schema", node=AppConf)
    for group, nodes in GROUPS.items():
        for name, node in nodes.items():
            store_lazily(f"schema/{group}", name, partial(_untyped if name == "custom" else OmegaConf.structured, node))


def _untyped(schema: type) -> DictConfig:
    """A section for a class of the user's: to a typed one no file could add that class's arguments."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(schema))
    return DictConfig(plain)
