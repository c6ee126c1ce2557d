"""`hydra/launcher=local`."""

from app.launch.launcher import SweepLauncher


class LocalLauncher(SweepLauncher):
    """A queue of jobs over GPUs or cores of this machine; its keys: app/config/schema/launcher.py."""

    backend_name = "app.launch.queue"
