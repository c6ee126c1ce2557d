"""Weights from anybody's file into a model: the only reader of weights. What did not match is never passed over."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn

from app.checkpoint import recovery, torch_file
from app.checkpoint.compatibility import compare_classes, some
from app.checkpoint.download import local_file
from app.checkpoint.transfer import shown
from app.core.parallel import like
from app.errors import CheckpointError

NESTED = ("state_dict", "model", "model_state_dict", "module", "net")
"""Where other programs' checkpoints keep the weights."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of DataParallel and torch.compile."""

logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """A model's parameters and buffers, as a file holds them."""

    entries: dict[str, Any]
    """By name; the tensors are mapped from the file."""
    metadata: dict[str, Any]
    """Format versions by module name, as `state_dict()._metadata`; empty where the file has none."""
    classes: list[str] | None = None
    """Class names of the run that saved them; None for another program's file."""
    name: str = "weights"
    """How messages name them: `load_from=PATH`."""


def read_weights(location: str, what: str = "load_from", prefix: str | None = None) -> Weights:
    """Read the weights at `location`; of our own checkpoints the average where the run was evaluated on it.

    Args:
        location: path or http(s) address of a .pth, .pt or .safetensors file, with `#sha256=…` if wanted.
        what: the config key that named it, for messages.
        prefix: take only the entries that begin with it, without it.

    Raises:
        CheckpointError: see `local_file` and `torch_file.load`; or the file holds no weights, or none under `prefix`.
    """
    path = local_file(location)
    recovery.verify(path)
    content = torch_file.read(path)
    try:
        entries, metadata = _unwrap(*_state_dict(content, path), path)
        saved = content.get("data") if _is_ours(content) else None
        classes = None if saved is None else [str(name) for name in saved["classes"]]
    except (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError):  # a stranger's, made to look like ours
        raise CheckpointError(f"{path} is not a checkpoint: its entries are not what their names say") from None
    if prefix is not None:
        heads = sorted(_heads(entries))
        entries, metadata = _below(prefix, entries, metadata)
        if not entries:
            raise CheckpointError(f"{what}: no entry of {path} begins with {prefix!r}; it has {some(heads)}")
    return Weights(entries, metadata, classes, f"{what}={shown(location)}")


def load_weights(
    model: nn.Module, weights: Weights, classes: Sequence[str] | None = None, *, strict: bool = False
) -> str:
    """Copy the weights into `model`; log and return a line that says what matched and what did not.

    Args:
        model: changed in place; what does not match keeps its values.
        weights: see `read_weights`.
        classes: of the data, compared with those of the run that saved the weights; None: not compared.
        strict: the weights are evaluated as they are, so every parameter and buffer must come from the file, and its
            classes must be the data's.

    Raises:
        CheckpointError: nothing matches; or with `strict`, not everything.
    """
    difference = compare_classes(weights.classes, classes) if weights.classes and classes else ""
    if strict and difference:
        raise CheckpointError(f"{weights.name} {difference}; give data of the classes it knows")
    present = model.state_dict()
    shapes = {
        name: f"{name} {tuple(weights.entries[name].shape)} instead of {tuple(value.shape)}"
        for name, value in present.items()
        if isinstance(value, torch.Tensor) and name in weights.entries and weights.entries[name].shape != value.shape
    }
    entries = {name: value for name, value in weights.entries.items() if name not in shapes}
    missing, unexpected = load_state(model, entries, weights.metadata)
    missing = _without_tied(model, set(missing) - shapes.keys())
    parts = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", [*shapes.values()]))
        if names
    ]
    untouched = {*missing, *shapes}
    if all(name in untouched for name, _ in model.named_parameters()):
        raise CheckpointError(
            f"{weights.name}: no weights match {type(model).__name__}; {'; '.join(parts)}. "
            f"The file is of another model{_prefix_hint(present, weights.entries)}"
        )
    # A file of ours holds exactly what its model has. Another program's may hold parts that are only trained with.
    if strict and (untouched or (unexpected and weights.classes is not None)):
        raise CheckpointError(
            f"{weights.name} does not hold the weights of {type(model).__name__} as configured: {'; '.join(parts)}. "
            "To evaluate, every parameter and buffer must come from the file; name the file's own model "
            "(model=…, its options, and the data with its classes)"
        )
    if shapes and _is_last_module(shapes, present):
        parts.append("the last layer keeps its new weights: the file has another number of classes")
    elif difference:
        parts.append(f"it {difference}: the last layer's outputs meant the former")
    line = "; ".join([f"{weights.name}: loaded {len(present) - len(untouched)} of {len(present)} entries", *parts])
    logger.log(logging.WARNING if parts else logging.INFO, line)
    return line


def load_state(
    model: nn.Module, entries: Mapping[str, Any], metadata: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Copy `entries` into `model` through each module's own rules for older formats; return missing and unexpected.

    Args:
        model: changed in place; sharded parameters take their part.
        entries: by name, of the model's shapes.
        metadata: the modules' format versions. Without any, torch reads a file as its first releases wrote it; a
            model that cannot be read so (MNASNet) is read as today's.

    Raises:
        CheckpointError: a module refuses its entries.
    """
    present = model.state_dict()
    ordered: OrderedDict[str, Any] = OrderedDict(
        (name, like(value, present[name]) if isinstance(present.get(name), torch.Tensor) else value)
        for name, value in entries.items()
    )
    for versions in (metadata, getattr(present, "_metadata", {})):
        ordered._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
        try:
            keys = model.load_state_dict(ordered, strict=False)
        except (ValueError, RuntimeError) as error:
            failure = error
        else:
            return list(keys.missing_keys), list(keys.unexpected_keys)
    raise CheckpointError(f"{type(model).__name__} cannot read its weights: {' '.join(str(failure).split())[:300]}")


def _is_ours(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and {"format", "kind"} <= content.keys()
        and all(isinstance(content.get(key), Mapping) for key in ("model", "hooks"))
    )


def _state_dict(content: Any, path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Where in a file the weights are, and the versions of their modules."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    if _is_ours(content):
        where = content["evaluated"] if "evaluated" in content else _evaluated_in_0_1(content)
        average = content["hooks"][where[0]][where[1]] if where else {}
        # An average has no state of modules beside their tensors: the model's is taken.
        return content["model"] | average, content.get("model_metadata", {})
    for key in NESTED:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return inner, getattr(inner, "_metadata", {})
    return content, getattr(content, "_metadata", {})


def _evaluated_in_0_1(content: Mapping[str, Any]) -> list[str] | None:
    """What later files name themselves: hook and entry with the weights that were evaluated."""
    hooks = (yaml.safe_load(content.get("config", "")) or {}).get("hooks") or {}
    averaged = "ema" in content["hooks"] and (hooks.get("ema") or {}).get("evaluate_on_ema", True)
    return ["ema", "average"] if averaged else None


def _unwrap(
    content: Mapping[str, Any], metadata: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and modules' own states, without the prefixes that wrappers put before every name."""
    entries = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor) or str(name).endswith("_extra_state")
    }
    if not any(isinstance(value, torch.Tensor) for value in entries.values()):
        raise CheckpointError(f"{path} holds no weights; it has the entries {some([str(key) for key in content])}")
    versions = {str(name): value for name, value in metadata.items()}
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in entries):
            entries, versions = _below(wrapper, entries, versions)
    return entries, versions


def _below(
    prefix: str, entries: Mapping[str, Any], metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries and versions under `prefix`, without it; the module `prefix` itself becomes the root, named ""."""
    cut = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
    modules = {
        f"{name}.".removeprefix(prefix).rstrip("."): value
        for name, value in metadata.items()
        if f"{name}.".startswith(prefix)
    }
    return cut, modules


def _without_tied(model: nn.Module, missing: set[str]) -> list[str]:
    """`missing` without second names of what was loaded under the first: safetensors keeps one name of a tensor."""
    tensors: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= model.named_buffers(remove_duplicate=False)
    loaded = {id(value) for name, value in tensors.items() if name not in missing}
    return [name for name in model.state_dict() if name in missing and id(tensors.get(name)) not in loaded]


def _heads(names: Iterable[str]) -> set[str]:
    return {f"{name.partition('.')[0]}." for name in names}


def _prefix_hint(present: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    for head in sorted(_heads(entries)):
        if sum(name.removeprefix(head) in present for name in entries if name.startswith(head)) > 1:
            return f", or its part under {head!r}: model.init.checkpoint with model.init.prefix={head} takes that"
    return ""


def _is_last_module(names: Iterable[str], present: Sequence[str] | Mapping[str, Any]) -> bool:
    last_module = list(present)[-1].rpartition(".")[0]
    return all(name.startswith(f"{last_module}.") for name in names)
