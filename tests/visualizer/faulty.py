"""Backends of the kind that must not hurt a run."""

import time
from typing import Any


class Raising:
    """Its server is gone."""

    def __init__(self, folder: Any, run_name: str, experiment: str, group: str | None = None) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "synchronous":
            raise AttributeError(name)

        def call(*args: Any) -> None:
            raise ConnectionError("no route to host")

        return call


class Sleeping(Raising):
    """Its server takes the connection and never answers."""

    def config(self, config: Any) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def scalars(self, values: Any, step: int, epoch: int) -> None:
        time.sleep(60)
