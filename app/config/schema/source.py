"""The options of every config group, offered to Hydra straight from the tables of dataclasses.

Not in Hydra's own store: a file of the user's that has the name of an option there is merged into it, with a warning
about deprecation, instead of taking its place. And each section is made only when it is chosen, 1 ms each.
"""

from collections.abc import Callable

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

OPTIONS: dict[str, Callable[[], DictConfig]] = {}
"""`GROUP/OPTION` -> what makes its section."""


class SchemaSource(ConfigSource):
    """A folder of config files that are made on demand."""

    @staticmethod
    def scheme() -> str:
        return "app"

    def load_config(self, config_path: str) -> ConfigResult:
        make = OPTIONS.get(config_path.removesuffix(".yaml"))
        if make is None:
            raise ConfigLoadError(f"there is no option {config_path}")
        return ConfigResult(provider=self.provider, path=self.full_path(), config=make(), header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return any(name.startswith(f"{config_path.strip('/')}/".lstrip("/")) for name in OPTIONS)

    def is_config(self, config_path: str) -> bool:
        return config_path.removesuffix(".yaml") in OPTIONS

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        prefix = f"{config_path.strip('/')}/".lstrip("/")
        below = [name.removeprefix(prefix).partition("/") for name in OPTIONS if name.startswith(prefix)]
        kinds = {True: ObjectType.GROUP, False: ObjectType.CONFIG}
        return sorted({name for name, slash, _ in below if results_filter in (None, kinds[bool(slash)])})


class SchemaSearchPath(SearchPathPlugin):
    """Looks there after the files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("options", "app://")


def register_source() -> None:
    """Make both known to Hydra; a second call changes nothing."""
    for plugin in (SchemaSource, SchemaSearchPath):
        Plugins.instance().register(plugin)
