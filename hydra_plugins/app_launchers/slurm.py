"""`hydra/launcher=slurm`."""

from app.launch.launcher import SweepLauncher


class SlurmLauncher(SweepLauncher):
    """One SLURM job per point of a sweep; its keys: app/config/schema/launcher.py."""

    backend_name = "app.launch.slurm"
