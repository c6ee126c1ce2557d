"""Weights from a file into a model: which entries matched, which did not, and never in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from app.checkpoint import manifest, recovery, torch_file
from app.checkpoint.compatibility import some
from app.checkpoint.download import local_file
from app.checkpoint.torch_file import impostor
from app.checkpoint.transfer import shown
from app.core.parallel import like
from app.errors import CheckpointError

NESTED = ("state_dict", "model", "model_state_dict", "module", "net")
"""Where other programs' checkpoints keep the weights."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of DataParallel and torch.compile."""

Weights = dict[str, torch.Tensor]


def load_into(
    model: nn.Module,
    location: str,
    what: str,
    prefix: str | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> str:
    """Puts the weights at `location` into `model` as far as they fit; returns a line that says how far.

    Args:
        model: changed in place; what does not match keeps its values.
        location: path or http(s) address of a .pth, .pt or .safetensors file, with `#sha256=…` if wanted.
        what: the config key that named it, for messages.
        prefix: take only the entries that begin with it, without it.

    Raises:
        CheckpointError: the file cannot be used, or nothing in it matches.
    """
    weights = read_weights(location, prefix, what, interrupted)
    return apply_weights(model, weights, f"{what}={shown(location)}")


def read_weights(
    location: str, prefix: str | None = None, what: str = "load_from", interrupted: Callable[[], bool] = lambda: False
) -> Weights:
    """The tensors by name; of our own checkpoints the EMA average where the run was evaluated on it.

    Raises:
        CheckpointError: see `local_file` and `torch_file.load`; or the file holds no weights, or none under `prefix`.
    """
    path = local_file(location, interrupted=interrupted)
    if (found := recovery.manifest_of(path)) is not None:
        manifest.verify(path.resolve().parent, found)
    weights = _unwrapped(_safetensors(path) if path.suffix == ".safetensors" else _state_dict(path), path)
    if prefix is None:
        return weights
    chosen = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not chosen:
        raise CheckpointError(
            f"{what}: no entry of {path} begins with {prefix!r}; it has {some(sorted(_heads(weights)))}"
        )
    return chosen


def apply_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> str:
    """Copies the entries whose name and shape match; returns what matched and what did not, in one line.

    Raises:
        CheckpointError: none match.
    """
    present = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    matching = {
        name: like(value, present[name])
        for name, value in weights.items()
        if name in present and present[name].shape == value.shape
    }
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in present.items()
        if name in weights and name not in matching
    ]
    missing = [name for name in present if name not in weights]
    unexpected = [name for name in weights if name not in present]
    parts = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if not set(matching) & {name for name, _ in model.named_parameters()}:
        raise CheckpointError(
            f"{what}: no weights match {type(model).__name__}; {'; '.join(parts)}. "
            f"The file is of another model{_prefix_hint(present, weights)}"
        )
    model.load_state_dict(matching, strict=False)
    if _only_head(shapes, present):
        parts.append("the last layer keeps its new weights: the file has another number of classes")
    return "; ".join([f"{what}: loaded {len(matching)} of {len(present)} entries", *parts])


def _state_dict(path: Path) -> Any:
    content = torch_file.load(path)
    if isinstance(content, dict) and isinstance(content.get("hooks"), dict) and "format" in content:
        average = content["hooks"].get("ema", {}).get("average")
        if average and _evaluated_on_average(content.get("config", "")):
            return average
    if isinstance(content, dict):
        for key in NESTED:
            if isinstance(content.get(key), Mapping) and any(
                isinstance(v, torch.Tensor) for v in content[key].values()
            ):
                return content[key]
    return content


def _evaluated_on_average(config: str) -> bool:
    hooks = (yaml.safe_load(config) or {}).get("hooks") or {}
    return bool((hooks.get("ema") or {}).get("evaluate_on_ema", True))


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        head = file.read(torch_file.HEAD_BYTES)
    if (kind := impostor(head, path.stat().st_size)) is not None:
        raise CheckpointError(f"{path} is not a checkpoint: {path.stat().st_size:,} bytes, {kind}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None


def _unwrapped(content: Any, path: Path) -> Weights:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    weights = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights; it has the entries {some([str(key) for key in content])}")
    for _ in WRAPPERS:
        for wrapper in WRAPPERS:
            if all(name.startswith(wrapper) for name in weights):
                weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def _heads(names: Mapping[str, Any]) -> set[str]:
    return {f"{name.partition('.')[0]}." for name in names}


def _prefix_hint(present: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    for head in sorted(_heads(weights)):
        if sum(name.removeprefix(head) in present for name in weights if name.startswith(head)) > 1:
            return f", or its part under {head!r}: model.init.checkpoint with model.init.prefix={head} takes that"
    return ""


def _only_head(shapes: Sequence[str], present: Mapping[str, Any]) -> bool:
    last_module = list(present)[-1].rpartition(".")[0]
    return bool(shapes) and all(text.startswith(f"{last_module}.") for text in shapes)
