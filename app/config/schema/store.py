"""The schema in Hydra's store, each section made when it is first asked for."""

from collections.abc import Callable
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig


class LazyNode(ConfigNode):
    """An entry of the store. Making one takes a millisecond, there are fifty, and a composition asks for fifteen."""

    def __init__(self, name: str, group: str, make: Callable[[], DictConfig]) -> None:
        self.name, self.group, self.package, self.provider = name, group, None, None
        self.make = make
        self.made: DictConfig | None = None

    @property
    def node(self) -> DictConfig:
        return self.make() if self.made is None else self.made

    @node.setter
    def node(self, value: DictConfig) -> None:
        self.made = value


def store_lazily(group: str, name: str, make: Callable[[], DictConfig]) -> None:
    """What `ConfigStore.store` does, with the making put off."""
    place: dict[str, Any] = ConfigStore.instance().repo
    for part in group.split("/"):
        place = place.setdefault(part, {})
    place[f"{name}.yaml"] = LazyNode(f"{name}.yaml", group, make)
