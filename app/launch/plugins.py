"""Makes the launchers known to Hydra. An editable install hides `hydra_plugins` from Hydra's own search."""

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from app.config.schema.launcher import LAUNCHERS, SWEEPERS


def register() -> None:
    """Stores the schema of launchers and sweepers and registers their classes; a second call changes nothing."""
    from hydra_plugins.app_launchers.local import LocalLauncher
    from hydra_plugins.app_launchers.search import OptunaSweeper
    from hydra_plugins.app_launchers.slurm import SlurmLauncher

    store = ConfigStore.instance()
    for name, node in LAUNCHERS.items():
        store.store(group="schema/launcher", name=name, node=node)
    for name, node in SWEEPERS.items():
        store.store(group="schema/sweeper", name=name, node=node)
    for plugin in (LocalLauncher, SlurmLauncher, OptunaSweeper):
        Plugins.instance().register(plugin)
