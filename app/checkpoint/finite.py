"""Weights with a NaN or an infinity in them are not saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from app.checkpoint.store import Save, Store
from app.errors import DataError


def write_finite(store: Store, entry: Save, parameters: frozenset[str], state: Mapping[str, Any]) -> str:
    """Saves `state`, unless its weights are not finite; returns the file's name.

    Raises:
        DataError: naming the first such entry of the model.
        SaveError: see `Store.save`.
    """
    name = nonfinite(state["model"], parameters)
    if name is not None:
        raise DataError(f"{name} is not finite at step {entry.step}: not saved")
    return store.save(state, entry)


def nonfinite(model: Mapping[str, Any], parameters: frozenset[str]) -> str | None:
    """The first parameter with a NaN or an infinity, or buffer with a NaN (masks hold infinities); None if all is well.

    A sum is finite when all its terms are, short of an overflow; only where it is not, each number is looked at.
    """
    for name, value in model.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        total = value.sum()
        if bool(total.isfinite()):
            continue
        bad = ~value.isfinite() if name in parameters else value.isnan()
        if bool(bad.any()):
            return name
    return None
