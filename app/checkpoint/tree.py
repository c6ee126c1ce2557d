"""Trees of dicts and lists with tensors at the leaves: what checkpoints and state dicts are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors; a container that occurs twice is visited once, and deep nesting is no problem."""
    seen: set[int] = set()
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, torch.Tensor):
            yield node
        elif isinstance(node, (Mapping, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            stack.extend(node.values() if isinstance(node, Mapping) else node)


def map_tensors(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of the containers, with every tensor replaced by `change` of it."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_tensors(value, change) for value in tree]
    if isinstance(tree, tuple):
        return tuple(map_tensors(value, change) for value in tree)
    return tree


def tensor_bytes(tree: Any) -> int:
    """Bytes of all storages below `tree`, each counted once."""
    sizes = {}
    for tensor in tensors(tree):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr(), storage.device] = storage.nbytes()
    return sum(sizes.values())


def plain(tree: Any, where: str) -> Any:
    """A copy of the containers that holds only what the safe loader reads back; numpy's numbers become Python's.

    Raises:
        TypeError: naming the place below `where` and the type found there.
    """
    if tree is None or isinstance(tree, torch.Tensor):
        return tree
    if isinstance(tree, Mapping):
        return {plain(key, f"{where} key"): plain(value, f"{where}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        values = [plain(value, f"{where}[{index}]") for index, value in enumerate(tree)]
        return values if isinstance(tree, list) else tuple(values)
    for kind in (bool, int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    if isinstance(tree, (np.bool_, np.integer, np.floating)):
        return tree.item()
    raise TypeError(
        f"{where} is a {type(tree).__name__}; a checkpoint holds tensors, dicts, lists, numbers and strings"
    )
