"""Saving in the background: a snapshot into buffers that are used again, and one thread that writes it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from app.tree import map_tensors


class Snapshot:
    """A copy of a state on the host, in the same memory every time; pinned where the state lives on a GPU."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def take(self, state: Any) -> Any:
        """`state` with every tensor copied; valid until the next call. Draws no random numbers."""
        old, self._buffers = iter(self._buffers), []
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        on_gpu: set[torch.device] = set()

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key in copies and tensor.numel():
                return copies[key]  # tied weights stay one tensor
            buffer = next(old, None)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            if tensor.is_cuda:
                on_gpu.add(tensor.device)
            buffer.copy_(tensor.detach(), non_blocking=True)
            copies[key] = buffer
            self._buffers.append(buffer)
            return buffer

        with torch.no_grad():
            snapshot = map_tensors(state, copy)
        for device in on_gpu:
            torch.cuda.synchronize(device)
        return snapshot


class Saver:
    """At most one save in flight. Its result, or its error, comes out of the next `poll` or `drain`, once."""

    def __init__(self, in_background: bool = True) -> None:
        """`in_background=False`: `submit` writes the state itself, without a copy, and returns when it is done."""
        self.in_background = in_background
        self._snapshot = Snapshot()
        self._executor: ThreadPoolExecutor | None = None
        self._future: Future[str] | None = None

    @property
    def busy(self) -> bool:
        """There is a save whose end nobody has asked for."""
        return self._future is not None

    def submit(self, state: Any, write: Callable[[Any], str]) -> None:
        """Calls `write` with a copy of `state` in the background. The save before must have been drained."""
        assert self._future is None
        if not self.in_background:
            self._future = Future()
            try:
                self._future.set_result(write(state))
            except Exception as error:  # it comes out of `drain`, as from the background
                self._future.set_exception(error)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._future = self._executor.submit(write, self._snapshot.take(state))

    def poll(self) -> str | None:
        """What `write` returned, or its error; None while it runs or when there is none."""
        return self.drain() if self._future is not None and self._future.done() else None

    def drain(self) -> str | None:
        """The same, after waiting for its end; None when there is none."""
        if self._future is None:
            return None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        """Ends the thread; a save in flight is completed."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
