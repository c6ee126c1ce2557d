"""How a module starts: pretrained weights put in at initialisation (`model.init`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from app.checkpoint.weights import load_weights, read_weights


def load_pretrained(
    model: nn.Module, checkpoint: str, prefix: str | None = None, classes: Sequence[str] | None = None
) -> str:
    """Put the part of `checkpoint` under `prefix` into `model`; log and return a line that says what matched.

    Raises:
        CheckpointError: the file cannot be used, or nothing in it matches.
    """
    return load_weights(model, read_weights(checkpoint, "model.init.checkpoint", prefix), classes)
