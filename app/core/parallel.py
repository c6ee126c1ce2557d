"""One model on several processes: replicated (DDP) or sharded (FSDP2), and whole tensors of sharded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from app.core.ranks import World
from app.errors import ConfigError


def parallel(
    model: nn.Module, forward: Callable[..., Any], world: World, settings: Mapping[str, Any]
) -> Callable[..., Any]:
    """What training calls instead of `forward`; `settings` is `env.dist`. Call it before the optimizer is built.

    DDP (Li et al., VLDB 2020) wraps `forward`, so that the bare model keeps its names. FSDP2 (fully_shard) turns the
    model's parameters into DTensors in place: each child with parameters is one unit, and the rest another.

    Raises:
        ConfigError: `forward` is not a module, so DDP cannot wrap it.
    """
    if world.size == 1:
        return forward
    if settings["strategy"] == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model.to(memory_format=torch.contiguous_format)  # channels-last weights cannot be sharded
        mesh = init_device_mesh(world.device.type, (world.size,))
        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)
        # Also after an evaluation's forward: a hook that changes weights then changes the shards.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        return forward
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(forward, nn.Module):
        raise ConfigError(
            f"env.compile with CUDA graphs (reduce-overhead, max-autotune) and env.dist.strategy=ddp on {world.size} "
            "processes do not go together; use env.compile=true, or env.dist.strategy=fsdp"
        )
    return DistributedDataParallel(
        forward,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        find_unused_parameters=settings["find_unused_parameters"],
        gradient_as_bucket_view=True,
    )


def synchronised(model: nn.Module, world: World, sync_bn: bool) -> nn.Module:
    """The model with batch norm over all ranks' images, where `env.dist.sync_bn` asks for it.

    Raises:
        ConfigError: torch has none for this device.
    """
    if not sync_bn or world.size == 1:
        return model
    if world.device.type != "cuda":
        raise ConfigError(
            f"env.dist.sync_bn=true needs GPUs (torch's SyncBatchNorm), the device is {world.device}; "
            "use +hooks=sync_buffers to average the statistics, or a model without batch norm"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]


def gradient_sync(forward: Any, last: bool) -> AbstractContextManager[Any]:
    """Leaves out the gradient exchange for all but the last micro-batch of a step."""
    if hasattr(forward, "set_requires_gradient_sync"):
        forward.set_requires_gradient_sync(last)
    elif not last and hasattr(forward, "no_sync"):
        return forward.no_sync()  # type: ignore[no-any-return]
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """True when every forward is a collective: all ranks must call it equally often."""
    return hasattr(model, "set_requires_gradient_sync")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one, on every rank (all must call it); any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, in the same memory; any other as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def like(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """This rank's part of a full tensor, sharded as `reference` is; the tensor itself where it is not."""
    mesh = getattr(reference, "device_mesh", None)
    if mesh is None or hasattr(tensor, "device_mesh") or tensor.shape != reference.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(reference.device), mesh, reference.placements, src_data_rank=None)  # type: ignore[attr-defined]
