"""Does the model fit the data set?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from app.config.schema.hooks import ClassNumCheckConf
from app.core.hook import Hook
from app.core.rng import preserved
from app.core.state import Run
from app.errors import ConfigError


class ClassNumCheck(ClassNumCheckConf, Hook):
    """Runs one blank image through the model before training and compares the outputs with the data set's classes.

    Nothing is left behind: evaluation mode, no gradients, random generators put back.

    Raises:
        ConfigError: another number of outputs than classes, another number of channels, or an image that the model
            cannot take.
    """

    def attach(self, run: Run) -> None:
        shape = (1, run.data.channels, run.data.image_size, run.data.image_size)
        expected = input_channels(run.state.model)
        if expected is not None and expected != run.data.channels:
            raise ConfigError(
                f"the model takes images of {expected} channel(s), but the data set (data._target_="
                f"{_of(run, 'data', '_target_')}) yields {run.data.channels} after its transforms: set "
                f"model.in_channels={run.data.channels} (or null: the data set's)"
            )
        output = blank_output(run, shape)
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ConfigError(
                f"model._target_={_of(run, 'model', '_target_')} returns {found} for one image; "
                "a model must return a tensor of shape (images, classes)"
            )
        classes = list(run.data.classes)
        if output.shape[1] != len(classes):
            some = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise ConfigError(
                f"the model has {output.shape[1]} outputs, but the data set has {len(classes)} classes ({some}): set "
                f"model.num_classes={len(classes)} (or null: the data set's), or correct the data set's classes"
            )


def blank_output(run: Run, shape: tuple[int, ...]) -> Any:
    """The model's output for zeros of `shape` in evaluation mode; its modes and the generators are put back."""
    model = run.state.model
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), preserved():
            return model(torch.zeros(shape, device=run.world.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"model._target_={_of(run, 'model', '_target_')} cannot take the data set's images of {shape[1]} "
            f"channel(s) and {shape[2]}x{shape[3]} pixels ({reason}): choose another model, or set data.image_size"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def input_channels(model: nn.Module) -> int | None:
    """What the first convolution takes; None for a model without one, or whose first layer is none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.Linear):
            return None
    return None


def _of(run: Run, group: str, key: str) -> object:
    return run.config.get(group, {}).get(key)
