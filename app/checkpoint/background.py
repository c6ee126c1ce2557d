"""Write in the background: copy the state into reused buffers, and hand the copy to a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from app.checkpoint.tree import map_tensors

COPY_THREADS = 2
"""Of a snapshot: one core alone does not use the memory's bandwidth."""
LARGE_BYTES = 1 << 20
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size: numpy does not know all of torch's types, and a copy need not."""


class Snapshot:
    """A copy of a state on the host, in the same memory every time; pinned where the state lives on a GPU."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._buffers: list[torch.Tensor] = []

    def take(self, state: Any) -> Any:
        """Return `state` with every tensor copied; valid until the next call. Draws no random numbers."""
        old, self._buffers = iter(self._buffers), []
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        large: list[tuple[torch.Tensor, torch.Tensor]] = []
        on_gpu: set[torch.device] = set()

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach()
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key in copies and tensor.numel():
                return copies[key]  # tied weights stay one tensor
            buffer = next(old, None)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            if tensor.is_cuda:
                on_gpu.add(tensor.device)
                buffer.copy_(tensor, non_blocking=True)
            elif tensor.nbytes >= LARGE_BYTES and tensor.element_size() in INTEGERS:
                large.append((buffer, tensor))
            else:
                buffer.copy_(tensor)
            copies[key] = buffer
            self._buffers.append(buffer)
            return buffer

        snapshot = map_tensors(state, copy)
        list(self._threads.map(_copy_bits, large))
        for device in on_gpu:
            torch.cuda.synchronize(device)
        return snapshot


def _copy_bits(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """numpy copies without torch's thread team: its barriers wait for cores that others use (5 times the time)."""
    target, source = (tensor.view(INTEGERS[tensor.element_size()]).numpy() for tensor in pair)
    np.copyto(target, source)


class BackgroundWriter:
    """At most one save in flight. Its result, or its error, comes out of the next `poll` or `drain`, once."""

    def __init__(self, in_background: bool = True) -> None:
        """`in_background=False`: `submit` writes the state itself, without a copy, and returns when it is done."""
        self.in_background = in_background
        self._threads = ThreadPoolExecutor(COPY_THREADS, "checkpoint")
        self._snapshot = Snapshot(self._threads)
        self._future: Future[str] | None = None

    @property
    def busy(self) -> bool:
        """True while the result of a save has not been asked for."""
        return self._future is not None

    def submit(self, state: Any, write: Callable[[Any], str]) -> None:
        """Call `write` with a copy of `state` in the background. The save before must have been drained."""
        assert self._future is None
        if not self.in_background:
            self._future = Future()
            try:
                self._future.set_result(write(state))
            except Exception as error:  # it comes out of `drain`, as from the background
                self._future.set_exception(error)
            return
        self._future = self._threads.submit(write, self._snapshot.take(state))

    def poll(self) -> str | None:
        """Return what `write` returned, or raise its error; None while it runs or when there is none."""
        return self.drain() if self._future is not None and self._future.done() else None

    def drain(self) -> str | None:
        """Wait for the save in flight and do the same; None when there is none."""
        if self._future is None:
            return None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        """End the threads; a save in flight is completed."""
        self._threads.shutdown(wait=True)
