"""The state of a run in a checkpoint: collected from the run, restored into it, read from a file.

No generator state and no loader state: randomness and data order are functions of the counters in `progress`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from app.checkpoint import compatibility, recovery, torch_file
from app.checkpoint.compatibility import class_name, parameter_names
from app.checkpoint.manifest import FORMAT
from app.checkpoint.recovery import weights_only
from app.checkpoint.tree import map_tensors, plain
from app.checkpoint.weights import load_state
from app.core.parallel import like, whole
from app.core.state import Progress, Run
from app.errors import CheckpointError

FULL, WEIGHTS = "full", "weights"


class Field(NamedTuple):
    """One entry of the state: how a run gives it, and how a freshly built run takes it back."""

    collect: Callable[[Run], Any]
    restore: Callable[[Run, Mapping[str, Any]], list[str]] | None = None
    """From the whole state; returns what a person should know, one line each. None: only compared, or for people."""
    resume_only: bool = False
    """Left out of a file of weights."""


def collect(run: Run, *, with_optimizer: bool = True) -> dict[str, Any]:
    """Collect the state of `run` between two steps; its tensors are the live ones. Every rank calls it, rank 0 writes.

    Without the optimizer it can be loaded from, but not resumed from.

    Raises:
        TypeError: a hook's state holds something else than tensors, dicts, lists, numbers and strings.
    """
    fields = {name: field for name, field in FIELDS.items() if with_optimizer or not field.resume_only}
    return {
        "format": FORMAT,
        "kind": FULL if with_optimizer else WEIGHTS,
        **run.origin,
        **{name: field.collect(run) for name, field in fields.items()},
    }


def restore(run: Run, state: Mapping[str, Any], source: object = "the checkpoint") -> list[str]:
    """Put a collected state into a freshly built run; learning rate, decay and the like stay the new configuration's.

    Everything is checked before anything is changed. Returns what a person should know, one line each.

    Raises:
        CheckpointError: naming what does not fit, and the remedy.
    """
    if state["kind"] != FULL:
        raise weights_only(source)
    notes = compatibility.check(run, state, source)
    for name, field in FIELDS.items():
        if field.restore is not None:
            missing = [f"{source} is of an older version and holds no {name}: it begins anew"]
            notes += field.restore(run, state) if name in state else missing
    return notes


def load(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint file of ours; its tensors are mapped from the file.

    Raises:
        CheckpointError: damaged, hostile, not one of ours, or of a newer program.
    """
    if verify:
        recovery.verify(path)
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


def config_text(run: Run) -> str:
    """The configuration as YAML: text for people, never instantiated from."""
    return str(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))


def config_sha256(run: Run) -> str:
    return hashlib.sha256(config_text(run).encode()).hexdigest()


def nonfinite(model: Mapping[str, Any], parameters: frozenset[str]) -> str | None:
    """The first parameter with a NaN or an infinity, or buffer with a NaN (masks hold infinities); None if all is well.

    A sum is finite when all its terms are, short of an overflow; only where it is not, each number is looked at.
    """
    for name, value in model.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        total = value.sum()
        if bool(total.isfinite()):
            continue
        bad = ~value.isfinite() if name in parameters else value.isnan()
        if bool(bad.any()):
            return name
    return None


def _model(run: Run) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, whole on every rank."""
    return map_tensors(plain(run.state.model.state_dict(), "the state of the model"), whole)  # type: ignore[no-any-return]


def _model_metadata(run: Run) -> dict[str, Any]:
    """The format versions of the modules: without them, MNASNet cannot be read and batch norm counts anew."""
    versions = getattr(run.state.model.state_dict(), "_metadata", {})
    metadata = {name: dict(value) for name, value in versions.items()}
    return plain(metadata, "the metadata of the model")  # type: ignore[no-any-return]


def _restore_model(run: Run, state: Mapping[str, Any]) -> list[str]:
    load_state(run.state.model, state["model"], state["model_metadata"])
    return []


def _scaler(run: Run) -> Any:
    return None if run.state.scaler is None else run.state.scaler.state_dict()


def _restore_scaler(run: Run, state: Mapping[str, Any]) -> list[str]:
    if run.state.scaler is None:
        return []
    if not state["scaler"]:
        return ["train.amp changed: the loss scale starts anew"]
    run.state.scaler.load_state_dict(dict(state["scaler"]))
    return []


def _schedule(run: Run) -> Any:
    return plain(getattr(run.schedule, "state_dict", dict)(), "the state of the schedule")


def _restore_schedule(run: Run, state: Mapping[str, Any]) -> list[str]:
    if state["schedule"] and hasattr(run.schedule, "load_state_dict"):
        run.schedule.load_state_dict(map_tensors(state["schedule"], torch.clone))
    return []


def _restore_progress(run: Run, state: Mapping[str, Any]) -> list[str]:
    for name, value in asdict(Progress(**state["progress"])).items():
        setattr(run.state.progress, name, value)
    return []


def _hooks(run: Run) -> dict[str, Any]:
    return {
        name: map_tensors(plain(hook.state_dict(), f"the state of hooks.{name}"), whole)
        for name, hook in run.hooks.items()
    }


def _restore_hooks(run: Run, state: Mapping[str, Any]) -> list[str]:
    notes, saved = [], state["hooks"]
    for name, hook in run.hooks.items():
        if name in saved:
            hook.load_state_dict(map_tensors(saved[name], torch.clone))  # the file stays mapped otherwise
        else:
            notes.append(f"hooks.{name} is new: it starts without a history")
    gone = [name for name, kept in saved.items() if name not in run.hooks and kept]
    return notes + [f"hooks.{name} is gone: its state is dropped" for name in gone]


def _evaluated(run: Run) -> list[str] | None:
    """Hook and entry of its state with the weights that were evaluated; None: the model's own."""
    found = ([name, hook.evaluated_weights] for name, hook in run.hooks.items() if hook.evaluated_weights is not None)
    return next(found, None)


def _data(run: Run) -> dict[str, Any]:
    data = run.data
    return {"classes": list(data.classes), "train_size": data.train_size, "steps_per_epoch": data.steps_per_epoch}


def _optimizer(run: Run) -> dict[str, Any]:
    """The optimizer's class, its parameters' names by group, and its state."""
    return {
        "class": class_name(run.state.optimizer),
        "names": parameter_names(run.state),
        "state": map_tensors(plain(run.state.optimizer.state_dict(), "the state of the optimizer"), whole),
    }


def _restore_optimizer(run: Run, state: Mapping[str, Any]) -> list[str]:
    """Load moments and counters; what the configuration says stays as it was built.

    Some optimizers keep counters in their groups (schedule-free, Prodigy): group entries that are not arguments of
    the constructor, but among its defaults, are state.
    """
    optimizer, saved = run.state.optimizer, state["optimizer"]
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
    return []


def _placed(value: Any, reference: Any) -> Any:
    """A saved tensor as `reference` is sharded; anything else as it is."""
    both = isinstance(value, torch.Tensor) and isinstance(reference, torch.Tensor)
    return like(value, reference) if both else value


FIELDS: dict[str, Field] = {
    "model": Field(_model, _restore_model),
    "model_metadata": Field(_model_metadata),
    "optimizer": Field(_optimizer, _restore_optimizer, resume_only=True),
    "scaler": Field(_scaler, _restore_scaler, resume_only=True),
    "schedule": Field(_schedule, _restore_schedule, resume_only=True),
    "progress": Field(lambda run: asdict(run.state.progress), _restore_progress),
    "hooks": Field(_hooks, _restore_hooks),
    "evaluated": Field(_evaluated),
    "seed": Field(lambda run: run.seed),
    "config": Field(config_text),
    "data": Field(_data),
    "world_size": Field(lambda run: run.world.size),
}
"""The state, in the order in which it is restored. A new field is one line here; files without it load with a note."""
