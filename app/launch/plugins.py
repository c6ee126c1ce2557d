"""Makes the launchers known to Hydra. An editable install hides `hydra_plugins` from Hydra's own search."""

from functools import partial

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from app.config.schema.launcher import LAUNCHERS, SWEEPERS
from app.config.schema.source import OPTIONS


def register() -> None:
    """Offer the options of hydra/launcher and hydra/sweeper and register their classes; twice is once."""
    from hydra_plugins.app_launchers.local import LocalLauncher
    from hydra_plugins.app_launchers.search import OptunaSweeper
    from hydra_plugins.app_launchers.slurm import SlurmLauncher

    for group, schemas in (("hydra/launcher", LAUNCHERS), ("hydra/sweeper", SWEEPERS)):
        for name, schema in schemas.items():
            OPTIONS[f"{group}/{name}"] = partial(OmegaConf.structured, schema)
    for plugin in (LocalLauncher, SlurmLauncher, OptunaSweeper):
        Plugins.instance().register(plugin)
