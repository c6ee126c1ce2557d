"""What makes a run faster and nothing else: memory layout, compilation, and the line that says what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from app.core.compiler import skip_compiler_import

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile whose outputs are overwritten by the next call."""


def set_layout(model: nn.Module, channels_last: bool | str, device: torch.device, amp: str | None) -> None:
    """Puts the weights of convolutions into channels-last order, or out of it; `auto` leaves them, but on a GPU in AMP.

    Only there is it always right: tensor cores want it, and everything else is faster or slower by model.
    """
    if channels_last == "auto":
        channels_last = True if device.type == "cuda" and amp is not None else "as it is"
    if isinstance(channels_last, bool):
        model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def compile_forward(model: nn.Module, setting: bool | str) -> Callable[..., Any]:
    """What to call instead of `model`, by `env.compile`; the model itself is compiled in place, its names stay.

    With fixed shapes: told nothing, torch goes over to dynamic ones at the short last batch of the first epoch, which
    compute other last bits, and a resumed process could not know.
    """
    if setting is False:
        skip_compiler_import()
        return model
    mode = "default" if setting is True else str(setting)
    torch.compiler.reset()
    model.compile(mode=mode, dynamic=False)
    if mode in CUDA_GRAPH_MODES:
        return lambda images: model(images).clone()
    return model


def describe(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, images: str, compiled: bool | str, amp: str | None
) -> str:
    """The choices that matter for speed, in one line; `images` says where they come from."""
    kind = next((name for name in ("fused", "foreach") if optimizer.defaults.get(name)), "plain")
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    last = any(not kernel.is_contiguous() for kernel in kernels)
    layout = ["channels-last convolutions" if last else "channels-first convolutions"] if kernels else []
    mode = "not compiled" if compiled is False else f"compiled ({'default' if compiled is True else compiled})"
    return "speed: " + ", ".join([images, *layout, amp or "no autocast", f"{kind} optimizer step", mode])
