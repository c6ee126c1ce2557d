"""Where numbers and pictures go: one small protocol, several backends at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.errors import ConfigError


def require(module: str, backend: str, remedy: str) -> Any:
    """Import the package of a backend when it is built, so before training.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"visualizer.{backend} needs a package that is not installed ({error}): {remedy}") from error


class Backend(Protocol):
    """A tracker. Called on the main rank only, from one thread; an error in it is warned of once, and it is dropped.

    One that keeps files of its own may have `sync()` too: bring all so far to the disk, before a checkpoint is there.
    """

    def config(self, config: Mapping[str, Any]) -> None:
        """Take the resolved configuration, without secrets; once at the start of every launch."""
        ...

    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """Take values named `phase/quantity` after `step` steps, `epoch` finished epochs."""
        ...

    def images(self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int) -> None:
        """Take pictures (height, width, 3), uint8, under one name; the list may differ in length from call to call."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Take a table such as the per-class results or the confusion matrix."""
        ...

    def rewind(self, step: int) -> None:
        """A run was restored at `step`: drop what was written for later steps; the series goes on from there."""
        ...

    def flush(self) -> None:
        """Let everything given so far survive a kill of this process."""
        ...

    def close(self, summary: Mapping[str, float]) -> None:
        """End this launch; `summary` holds the final and best metrics."""
        ...


class Visualizer(Protocol):
    """The fan-out over all backends: the same calls; never raises, never blocks for long. On other ranks: nothing."""

    def config(self, config: Mapping[str, Any]) -> None: ...
    def scalars(self, values: Mapping[str, float], step: int, epoch: int) -> None: ...
    def images(
        self, name: str, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], step: int
    ) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None: ...
    def rewind(self, step: int) -> None: ...
    def flush(self) -> None: ...
    def sync(self) -> None: ...
    def close(self, summary: Mapping[str, float]) -> None: ...
