"""The processes of one run: who am I, what do all of us agree on."""

import gc
import importlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from app.core.env import choose_device
from app.core.rank import adopt
from app.errors import ConfigError, RunError, TemporaryError
from app.process import follow_parent

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

    Raises:
        ConfigError: no such device, or `nccl` without GPUs.
    """
    mine = adopt()
    device = choose_device(env["device"], mine.local_rank, mine.local_size)
    settings = env["dist"]
    if settings["backend"] == "nccl" and device.type != "cuda":
        raise ConfigError(f"env.dist.backend=nccl needs GPUs, but the device is {device}; use gloo or auto")
    if mine.size == 1:
        yield World(device)
        return
    backend = settings["backend"]
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    address, port = settings["master_addr"] or mine.master_addr, settings["master_port"] or mine.master_port
    follow_parent(signal.SIGTERM)  # its launcher: it saves and leaves instead of training on
    timeout = timedelta(seconds=settings["timeout"])
    # torchrun's own store, which env:// finds, unless another address is asked for.
    where = f"tcp://{address}:{port}" if settings["master_addr"] or settings["master_port"] else "env://"
    store, rank, size = next(rendezvous(where, mine.rank, mine.size, timeout=timeout))
    # torchrun keeps its store when it starts the ranks again: without a prefix they read the dead ones' addresses.
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    importlib.import_module("torch.distributed.nn")  # its functions keep the group that they find when DDP imports them
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timeout)
    world = World(device, rank, size, mine.local_rank, mine.local_size)
    members = world.gather((socket.gethostname(), os.getpid()))
    try:
        yield world
    except RuntimeError as error:
        if isinstance(error, RunError) or not is_collective_error(error):
            raise
        raise TemporaryError(
            f"rank {rank} lost touch with the other ranks: {missing_ranks(members, rank)}; "
            "everything up to the last checkpoint is kept: start again with resume=true"
        ) from error
    finally:
        # DDP first, which the run holds in a cycle: only a group that nobody refers to any more ends its threads, and
        # one that gives back a tensor while the interpreter ends aborts the process.
        gc.collect()
        dist.destroy_process_group()


def is_collective_error(error: RuntimeError) -> bool:
    """True for what gloo and NCCL raise when a rank is gone or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Timed out waiting"))


def missing_ranks(members: Sequence[tuple[str, int]], rank: int) -> str:
    """Which of the ranks' processes on this machine are dead or stopped; `members` are (host, pid) by rank."""
    host = members[rank][0]
    found = []
    for other, (place, pid) in enumerate(members):
        if place == host and other != rank and (state := process_state(pid)) is not None:
            found.append(f"rank {other} (pid {pid}) {state}")
    elsewhere = sorted({place for place, _ in members} - {host})
    return ", ".join(found) or (f"look at {', '.join(elsewhere)}" if elsewhere else "one of them does not answer")


def process_state(pid: int) -> str | None:
    """`is dead`, `is stopped`, or None for a process that runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "is dead"
    return {"Z": "is dead", "X": "is dead", "T": "is stopped"}.get(state)
