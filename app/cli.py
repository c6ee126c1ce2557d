"""The command line: composes the configuration, checks it, and starts the job."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from app.schema import register

_HERE = Path(__file__).resolve().parent
CONF = next(str(path) for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())
"""The folder of config files: beside the package in a checkout, inside it in a wheel."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def _main(config: DictConfig) -> float:
    from app.run import run_job

    return run_job(config)


def entry() -> None:
    """The console script `app` and `python -m app`."""
    register()
    _main()
