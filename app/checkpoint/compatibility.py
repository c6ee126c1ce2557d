"""Compare a run with the checkpoint it is resumed from: model, optimizer, classes, and in mid-epoch the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from app.core.state import Run, TrainState
from app.errors import CheckpointError


def check(run: Run, state: Mapping[str, Any], source: object) -> list[str]:
    """Compare a freshly built run with a collected state; return what a person should know, one line each.

    Raises:
        CheckpointError: naming what does not fit, and the remedy.
    """
    notes = [*_data(run, state, source), *_world(run, state)]
    _model(run.state.model, state["model"], source)
    _optimizer(run.state, state["optimizer"], source)
    return notes


def parameter_names(state: TrainState) -> list[list[str]]:
    """The names of the optimizer's parameters, group by group."""
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    return [[names.get(id(each), "?") for each in group["params"]] for group in state.optimizer.param_groups]


def class_name(instance: object) -> str:
    """`module.Class`."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def compare_classes(saved: Sequence[str], present: Sequence[str]) -> str:
    """How two class lists differ, and both of them; empty when they do not."""
    if list(saved) == list(present):
        return ""
    lists = f"{', '.join(saved[:20])}{', …' if len(saved) > 20 else ''} | {', '.join(present[:20])}"
    text = f"is of a run with {len(saved)} classes, data has {len(present)}"
    if len(saved) == len(present):
        before, after = next(pair for pair in zip(saved, present, strict=True) if pair[0] != pair[1])
        text = f"is of a run whose class {list(saved).index(before)} was {before!r}, in data it is {after!r}"
    return f"{text} (its classes | the data's: {lists}{', …' if len(present) > 20 else ''})"


def _data(run: Run, state: Mapping[str, Any], source: object) -> list[str]:
    then, data = state["data"], run.data
    old, new = list(then["classes"]), list(data.classes)
    if difference := compare_classes(old, new):
        raise CheckpointError(
            f"{source} {difference}; resume with the data it was trained on, or fine-tune with resume=false load_from=…"
        )
    if then["steps_per_epoch"] == data.steps_per_epoch:
        return []
    change = (
        f"an epoch has {data.steps_per_epoch} steps instead of {then['steps_per_epoch']} "
        "(data.batch_size, train.accumulate, or the number of training images changed)"
    )
    if state["progress"]["batch"]:
        raise CheckpointError(
            f"{source} was saved in the middle of an epoch (batch {state['progress']['batch']}), and {change}: the "
            "place to go on from does not exist; keep those settings, or resume from a checkpoint at an epoch's end"
        )
    return [f"{change}: the run goes on from the end of epoch {state['progress']['epoch']}"]


def _world(run: Run, state: Mapping[str, Any]) -> list[str]:
    notes = []
    if state["world_size"] != run.world.size:
        notes.append(f"{run.world.size} process(es) instead of {state['world_size']}: not bit-identical")
    if state["seed"] != run.seed:
        notes.append(
            f"randomness.seed is {run.seed} instead of {state['seed']}: order and augmentation change from here"
        )
    return notes


def _model(model: nn.Module, entries: Mapping[str, Any], source: object) -> None:
    present = model.state_dict()
    missing = [name for name in present if name not in entries]
    unexpected = [name for name in entries if name not in present]
    shapes = [
        f"{name} {tuple(entries[name].shape)} in the checkpoint, {tuple(value.shape)} in the model"
        for name, value in present.items()
        if isinstance(value, torch.Tensor) and name in entries and entries[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        problems = [
            f"{len(found)} {what}: {some(found)}"
            for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if found
        ]
        raise CheckpointError(
            f"{source} belongs to another model than {class_name(model)} as configured: {'; '.join(problems)}. "
            "Resume with the model it was trained with, or take what fits with resume=false load_from=…"
        )


def _optimizer(state: TrainState, saved: Mapping[str, Any], source: object) -> None:
    name = class_name(state.optimizer)
    if saved["class"] != name:
        raise CheckpointError(
            f"{source} holds the state of {saved['class']}, optim is {name}; "
            "resume with the same optimizer, or start from the weights with resume=false load_from=…"
        )
    old, new = list(saved["names"]), parameter_names(state)
    if old != new:
        changed = [
            f"group {index}: {some(before)} before, {some(after)} now"
            for index, (before, after) in enumerate(zip(old, new, strict=False))
            if before != after
        ]
        differing = changed[0] if changed else f"{len(old)} groups before, {len(new)} now"
        raise CheckpointError(
            f"{source} was saved with other parameter groups of the optimizer ({differing}); keep optim.multipliers, "
            "optim.layer_decay, optim.decay_norm_bias and whether optim.weight_decay is 0, or start from the weights "
            "with resume=false load_from=…"
        )


def some(names: Sequence[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:count]) + (f", … ({len(names) - count} more)" if len(names) > count else "")
