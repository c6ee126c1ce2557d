"""Keeps torch's compiler packages out of a process that compiles nothing."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch


def without_compiler_import() -> None:
    """Keeps torch's optimizers from importing torch._dynamo (1.6 s of CPU time), for a process that compiles nothing.

    They import it on construction, on zero_grad and on every step, to mark themselves as not to be traced. Here they
    are told beforehand that there is nothing to mark. Results are the same. Once torch._dynamo is imported (by
    torch.compile, or torchvision) they are as torch made them. Where torch's internals look different, nothing is done.
    """
    for name, method in inspect.getmembers(torch.optim.Optimizer, inspect.isfunction):
        original = getattr(method, "__wrapped__", None)
        if inspect.isfunction(original) and method.__globals__.get("__name__") == "torch._compile":
            marked = _unless_compiler(method, original)
            setattr(torch.optim.Optimizer, name, marked)
    for found in vars(torch.optim).values():
        step = vars(found).get("step") if inspect.isclass(found) else None
        original = getattr(step, "__wrapped__", None)
        if inspect.isfunction(step) and inspect.isfunction(original) and step.__code__.co_name == "_use_grad":
            found.step = _unless_compiler(step, _with_gradients_as_configured(original))


def _unless_compiler(method: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `plain` until torch._dynamo is imported, `method` from then on."""
    modules = sys.modules

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (method if "torch._dynamo" in modules else plain)(*args, **kwargs)

    return call


def _with_gradients_as_configured(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `_use_grad_for_differentiable` without its two graph breaks, which mean nothing to an eager step."""

    def call(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return call
