"""Stands between the store and the file system: something happens at the n-th file operation of a save."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from app import files
from app.checkpoint.directory import CheckpointDir
from app.checkpoint.manifest import Manifest

NAMES = ("replace", "link", "symlink", "unlink", "fsync", "mkdir", "open")


class Operations:
    """Counts file operations; at number `at`, `act(tear)` is called first: `tear()` does half of a write."""

    def __init__(self, at: int, act: Callable[[Callable[[], object]], object]) -> None:
        self.at, self.act, self.count = at, act, 0

    def reached(self, tear: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self.at:
            self.act(tear)


@contextmanager
def interposed(at: int, act: Callable[[Callable[[], object]], object]) -> Iterator[Operations]:
    """Within: every operation that the store asks the system for is counted, and `act` happens at the `at`-th."""
    operations = Operations(at, act)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            operations.reached()
            return real(*args, **kwargs)

        return call

    real_write = files.HashingFile.write

    def write(self: files.HashingFile, data: bytes | memoryview) -> int:
        def tear() -> None:
            self.file.write(bytes(data)[: len(bytes(data)) // 2])
            self.file.flush()

        try:
            operations.reached(tear)
        except OSError as error:
            self.error = error
            raise
        return real_write(self, data)

    with ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(patch.object(os, name, before(getattr(os, name))))
        stack.enter_context(patch.object(files, "open", before(builtins.open), create=True))
        stack.enter_context(patch.object(files.HashingFile, "write", write))
        yield operations


def state_of(step: int) -> dict[str, Any]:
    """A small state that tells its step."""
    return {"format": 1, "kind": "full", "progress": {"step": step}, "model": {"w": torch.full((50,), float(step))}}


def save(store: CheckpointDir, step: int) -> str:
    """The save of `step`: a periodic one that is the best too."""
    return store.save(
        state_of(step),
        Manifest(f"epoch_{step}.pth", step, step, step, metrics={"val/top1": 0.1}),
        best=["val/top1"],
    )


def opened(folder: Path, keep: int) -> CheckpointDir:
    """A store as a start makes it."""
    store = CheckpointDir(folder, ["val/top1"], keep)
    store.open()
    return store


def leftovers(folder: Path) -> list[str]:
    """Files that belong to no checkpoint."""
    names = {path.name for path in folder.iterdir()}
    pairs = {name for stem in {Path(name).stem for name in names} for name in (f"{stem}.pth", f"{stem}.json")}
    complete = {name for name in pairs if {f"{Path(name).stem}.pth", f"{Path(name).stem}.json"} <= names}
    return sorted(names - complete - {"best.pth"})
