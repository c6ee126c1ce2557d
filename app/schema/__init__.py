"""Every key of the configuration: its type, default, range and documentation, once. Imports neither torch nor numpy."""

from functools import cache

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from app.schema.data import DATA
from app.schema.hooks import HOOKS
from app.schema.model import MODELS
from app.schema.optim import OPTIMS, SCHEDULES
from app.schema.root import AppConf
from app.schema.runtime import BACKENDS

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
    store = ConfigStore.instance()
    store.store(name="app_schema", node=AppConf)
    for group, nodes in GROUPS.items():
        for name, node in nodes.items():
            # a custom section stays untyped: to a typed one no file could add the arguments of a class of the user's
            plain = OmegaConf.to_container(OmegaConf.structured(node)) if name == "custom" else node
            store.store(group=f"schema/{group}", name=name, node=plain)
