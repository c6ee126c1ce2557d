"""Contradictions between the keys of data sets and augmentation (see app/config/rules.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from app.config.limits import check_limits
from app.config.schema.augment import parse_augment, parse_batch_augment
from app.config.schema.model import CrossEntropyConf
from app.config.suggest import unknown_key
from app.errors import ConfigError

Config = Mapping[str, Any]


def source(config: Config, given: Collection[str]) -> Iterator[str]:
    """Keys of `data` itself."""
    data = config["data"]
    mean, std = data.get("mean"), data.get("std")
    if (mean is None) != (std is None):
        yield f"data.mean={mean} and data.std={std}: give both or neither"
    elif mean is not None and std is not None:
        if len(mean) != len(std):
            yield f"data.mean has {len(mean)} channels and data.std has {len(std)}"
        if any(value <= 0 for value in std):
            yield f"data.std must be > 0 in every channel, got {std}"
    if data.get("val_fraction") is not None and data.get("val_list") is not None:
        yield "data.val_fraction and data.val_list both say what validation is; give one"
    if data.get("val_list") is not None and data.get("train_list") is None:
        yield "data.val_list needs data.train_list=… too"
    limit, batch = data.get("limit_train"), data.get("batch_size")
    if data.get("drop_last") and limit is not None and batch is not None and limit < batch:
        yield f"data.drop_last=true with data.limit_train={limit} below data.batch_size={batch} leaves no step to train"


def augmentation(config: Config, given: Collection[str]) -> Iterator[str]:
    """`data.augment` and `data.batch_augment`, here and in the recipes."""
    places = [("data", config["data"])]
    schedule = (config["hooks"].get("switch_recipe") or {}).get("schedule")
    for index, entry in enumerate(schedule if isinstance(schedule, list) else []):
        key = f"hooks.switch_recipe.schedule[{index}]"
        yield from _recipe(key, entry)
        if isinstance(entry, dict):
            places.append((key, entry))
    entries = [entry for entry in schedule or [] if isinstance(entry, dict)]
    epochs = [entry["epoch"] for entry in entries if isinstance(entry.get("epoch"), int)]
    if epochs != sorted(set(epochs)):
        yield f"hooks.switch_recipe.schedule: epochs must rise from entry to entry, got {epochs}"
    for key, node in places:
        for field, parse in (("augment", parse_augment), ("batch_augment", parse_batch_augment)):
            try:
                parse(node.get(field), f"{key}.{field}")
            except ConfigError as error:
                yield str(error)


def _recipe(key: str, entry: Any) -> Iterator[str]:
    known = ("epoch", "augment", "batch_augment", "loss")
    if not isinstance(entry, dict):
        yield f"{key} must be a mapping of {', '.join(known)}; got {entry!r}"
        return
    for field in entry:
        if field not in known:
            yield unknown_key(f"{key}.", str(field), known)
    if not isinstance(entry.get("epoch"), int) or entry["epoch"] < 0:
        yield f"{key}.epoch must be a whole number >= 0, got {entry.get('epoch')!r}"
    if "loss" in entry:
        yield from _recipe_loss(f"{key}.loss", entry["loss"])


def _recipe_loss(key: str, loss: Any) -> Iterator[str]:
    if not isinstance(loss, dict):
        yield f"{key} must be a mapping like `loss`, got {loss!r}"
        return
    known = {field.name: field for field in fields(CrossEntropyConf) if field.name != "_target_"}
    for name, value in loss.items():
        if name in known:
            yield from check_limits(f"{key}.{name}", value, known[name].metadata)
        else:
            yield unknown_key(f"{key}.", str(name), known)
