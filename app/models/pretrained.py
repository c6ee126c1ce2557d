"""How a module starts: pretrained weights put in at initialisation (`model.init`)."""

from __future__ import annotations

from torch import nn

from app.checkpoint.weights import load_into


def load_pretrained(model: nn.Module, checkpoint: str, prefix: str | None = None) -> str:
    """Puts the part of `checkpoint` under `prefix` into `model`; returns a line that says what matched.

    Raises:
        CheckpointError: the file cannot be used, or nothing in it matches.
    """
    return load_into(model, checkpoint, "model.init.checkpoint", prefix)
