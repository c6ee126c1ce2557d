"""What a checkpoint holds, how a run becomes one, and how one becomes a run again.

No generator state and no loader state: randomness and data order are functions of the counters in `progress`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from app.checkpoint import compatibility, manifest, recovery, torch_file
from app.checkpoint.compatibility import class_name, parameter_names
from app.checkpoint.manifest import FORMAT
from app.checkpoint.tree import map_tensors, plain
from app.checkpoint.weights import load_state
from app.core.parallel import like, whole
from app.core.state import Progress, Run, TrainState
from app.errors import CheckpointError
from app.runs import provenance

FULL, WEIGHTS = "full", "weights"


def collect(run: Run, *, with_optimizer: bool = True) -> dict[str, Any]:
    """The state of `run` between two steps; its tensors are the live ones. Every rank calls it, rank 0 writes it.

    Without the optimizer it can be loaded from, but not resumed from.

    Raises:
        TypeError: a hook's state holds something else than tensors, dicts, lists, numbers and strings.
    """
    state, data = run.state, run.data
    model, metadata = model_state(state)
    collected: dict[str, Any] = {
        "format": FORMAT,
        "kind": FULL if with_optimizer else WEIGHTS,
        "model": model,
        "model_metadata": metadata,
        "progress": asdict(state.progress),
        "hooks": {
            name: map_tensors(plain(hook.state_dict(), f"the state of hooks.{name}"), whole)
            for name, hook in run.hooks.items()
        },
        "seed": run.seed,
        "config": config_text(run),
        "data": {"classes": list(data.classes), "train_size": data.train_size, "steps_per_epoch": data.steps_per_epoch},
        "world_size": run.world.size,
        **_origin(),
    }
    if with_optimizer:
        schedule: Any = getattr(run.schedule, "state_dict", dict)()
        collected |= {
            "optimizer": optimizer_state(state),
            "scaler": state.scaler.state_dict() if state.scaler is not None else None,
            "schedule": plain(schedule, "the state of the schedule"),
        }
    return collected


def restore(run: Run, state: Mapping[str, Any], source: object = "the checkpoint") -> list[str]:
    """Puts a collected state into a freshly built run; learning rate, decay and the like stay the new configuration's.

    Everything is checked before anything is changed. Returns what a person should know, one line each.

    Raises:
        CheckpointError: naming what does not fit, and the remedy.
    """
    if state["kind"] != FULL:
        raise CheckpointError(
            f"{source} holds weights only (hooks.checkpoint.save_optimizer=false) and cannot be resumed from; "
            f"start from its weights with resume=false load_from={source}"
        )
    notes = compatibility.check(run, state, source)
    load_state(run.state.model, state["model"], state["model_metadata"])
    load_optimizer(run.state, state["optimizer"])
    if run.state.scaler is not None and state["scaler"]:
        run.state.scaler.load_state_dict(dict(state["scaler"]))
    elif run.state.scaler is not None:
        notes.append("train.amp changed: the loss scale starts anew")
    if state["schedule"] and hasattr(run.schedule, "load_state_dict"):
        run.schedule.load_state_dict(map_tensors(state["schedule"], torch.clone))
    for name, value in asdict(Progress(**state["progress"])).items():
        setattr(run.state.progress, name, value)
    for name, hook in run.hooks.items():
        if name in state["hooks"]:
            hook.load_state_dict(map_tensors(state["hooks"][name], torch.clone))  # the file stays mapped otherwise
        else:
            notes.append(f"hooks.{name} is new: it starts without a history")
    dropped = [name for name, kept in state["hooks"].items() if name not in run.hooks and kept]
    return notes + [f"hooks.{name} is gone: its state is dropped" for name in dropped]


def load(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """The state in a checkpoint file of ours, its tensors mapped from the file.

    Raises:
        CheckpointError: damaged, hostile, not one of ours, or of a newer program.
    """
    if verify and (found := recovery.manifest_of(path)) is not None:
        manifest.verify(path.resolve().parent, found)
    state = torch_file.load(path)
    if not isinstance(state, dict) or not {"format", "kind", "model", "progress"} <= state.keys():
        raise CheckpointError(
            f"{path} is not a checkpoint of this program, so it cannot be resumed from; "
            f"take its weights with resume=false load_from={path}"
        )
    if state["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, this program reads up to {FORMAT}: update it")
    return state


peek = functools.partial(load, verify=False)
"""`load` for a look at the small values: no tensor is read."""


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is what was written; see `app.checkpoint.recovery.newest_intact`."""
    found = recovery.newest_intact(folder)
    return None if found is None else folder / found.name


def config_text(run: Run) -> str:
    """The configuration as YAML: text for people, never instantiated from."""
    return str(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))


def config_sha256(run: Run) -> str:
    return hashlib.sha256(config_text(run).encode()).hexdigest()


def model_state(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Parameters and buffers by name, whole on every rank that writes; and the modules' format versions."""
    entries = state.model.state_dict()
    metadata = {name: dict(value) for name, value in getattr(entries, "_metadata", {}).items()}
    return map_tensors(plain(entries, "the state of the model"), whole), plain(metadata, "the metadata of the model")


def optimizer_state(state: TrainState) -> dict[str, Any]:
    """The optimizer's class, its parameters' names by group, and its state."""
    return {
        "class": class_name(state.optimizer),
        "names": parameter_names(state),
        "state": map_tensors(plain(state.optimizer.state_dict(), "the state of the optimizer"), whole),
    }


def load_optimizer(state: TrainState, saved: Mapping[str, Any]) -> None:
    """The inverse of `optimizer_state`, except for what the configuration says: that stays as it was built.

    Some optimizers keep counters in their groups (schedule-free, Prodigy): group entries that are not arguments of
    the constructor, but among its defaults, are state.
    """
    optimizer = state.optimizer
    arguments = inspect.signature(type(optimizer).__init__).parameters
    counters = {key for key in optimizer.defaults if key not in arguments}
    built = [
        {key: value for key, value in group.items() if key != "params" and key not in counters}
        for group in optimizer.param_groups
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = {
        index: {name: _placed(value, parameters[index]) for name, value in entries.items()}
        for index, entries in saved["state"]["state"].items()
    }
    optimizer.load_state_dict(map_tensors({**saved["state"], "state": placed}, torch.clone))
    for group, values in zip(optimizer.param_groups, built, strict=True):
        group.update(values)


def _placed(value: Any, reference: Any) -> Any:
    """A saved tensor as `reference` is sharded; anything else as it is."""
    both = isinstance(value, torch.Tensor) and isinstance(reference, torch.Tensor)
    return like(value, reference) if both else value


@functools.cache
def _origin() -> dict[str, Any]:
    return {"versions": provenance.versions(), "git_commit": provenance.git_state()[0]}
