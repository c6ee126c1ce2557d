"""The processes of one run: who am I, what do all of us agree on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from app.env import choose_device
from app.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` others; `device` is where it computes."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The greatest `value` of all ranks, so that all branch alike. Every rank must call it at the same point."""
        if self.size == 1:
            return value
        flag = torch.tensor([value], dtype=torch.int64, device=self._collective_device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag.item())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def average(self, tensors: Sequence[torch.Tensor], weight: float = 1.0) -> None:
        """Replaces floating-point tensors by their mean over all ranks, this one `weight` times; one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([*(tensor.flatten().to(torch.float32) for tensor in tensors), tensors[0].new_ones(1)])
        dist.all_reduce(flat.mul_(weight))
        means = flat[:-1] / flat[-1]
        for tensor, mean in zip(tensors, torch.split(means, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces tensors by rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def broadcast(self, value: T) -> T:
        """Rank 0's `value` (any small picklable object) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._collective_device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        boxes: list[T | None] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes  # type: ignore[return-value]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    @property
    def _collective_device(self) -> torch.device:
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def connected(env: Mapping[str, Any]) -> Iterator[World]:
    """This process's place among those of the run, connected to them for as long as the context lasts.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them.

    Raises:
        ConfigError: no such device, or `nccl` without GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    device = choose_device(env["device"], local_rank, local_size)
    settings = env["dist"]
    if settings["backend"] == "nccl" and device.type != "cuda":
        raise ConfigError(f"env.dist.backend=nccl needs GPUs, but the device is {device}; use gloo or auto")
    if size == 1:
        yield World(device)
        return
    backend = settings["backend"]
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    address = settings["master_addr"] or os.environ.get("MASTER_ADDR")
    port = settings["master_port"] or os.environ.get("MASTER_PORT")
    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}" if settings["master_addr"] or settings["master_port"] else "env://",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=settings["timeout"]),
    )
    try:
        yield World(device, rank, size, local_rank, local_size)
    finally:
        dist.destroy_process_group()
