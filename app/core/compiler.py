"""Keep torch's compiler packages out of a process that compiles nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def skip_compiler_import() -> None:
    """Keep torch's optimizers from importing torch._dynamo, 1.6 s of CPU time, only to say that it may not trace them.

    Call it before an optimizer is made, in a process that compiles nothing but models. Results are the same. Where
    torch's internals look different, nothing is done.
    """
    for _, method in inspect.getmembers(torch.optim.Optimizer, inspect.isfunction):
        if method.__globals__["__name__"] == "torch._compile":
            original: Any = inspect.unwrap(method)
            original.__dynamo_disable = original  # where torch keeps the marked function after its first call
    for found in vars(torch.optim).values():
        step = vars(found).get("step") if inspect.isclass(found) else None
        if inspect.isfunction(step) and step.__code__.co_name == "_use_grad":
            found.step = _without_graph_breaks(inspect.unwrap(step))


def _without_graph_breaks(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `_use_grad_for_differentiable`, less two calls that mean nothing outside of a compiled graph."""

    @functools.wraps(step)
    def call(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return call
