"""Comparing what runs left."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RunApp = Callable[..., Path]
"""The fixture `run_app`: a name and overrides -> the run folder."""
NOT_REPEATABLE = ("time", "seconds", "images_per_second", "data_time", "memory_mib")


def digest(value: Any) -> str:
    """A hash of the bits of nested tensors, numbers, strings, lists and dicts."""
    hasher = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hasher.update(str((item.dtype, tuple(item.shape))).encode())
            hasher.update(item.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                feed(key)
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            hasher.update(str(len(item)).encode())
            for element in item:
                feed(element)
        else:
            hasher.update(repr(item).encode())

    feed(value)
    return hasher.hexdigest()


def scalars(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a run, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "vis_data" / "scalars.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.split("/")[-1] not in NOT_REPEATABLE} for row in rows]
