"""Reads `data.augment` and `data.batch_augment`; imports neither torch nor torchvision."""

import dataclasses
import importlib.util
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from app.config.schema.data import AUGMENTS, BATCH_AUGMENTS
from app.errors import ConfigError

NOT_AUGMENTS = ("AutoAugmentPolicy", "Compose", "CutMix", "InterpolationMode", "Lambda", "MixUp", "Transform")
"""What torchvision.transforms.v2 exports besides transforms of one image."""
Recipe = list[tuple[str, dict[str, Any]]]
"""Augmentations in the order in which they are applied, with all their arguments."""


def parse_augment(value: Any, key: str = "data.augment") -> Recipe:
    """The augmentations that `value` means: null, a list of names, or a mapping name -> arguments (null removes one).

    Ours come in the order of `AUGMENTS`; classes of torchvision.transforms.v2 and of one's own (a name of one's own,
    with a `_target_`) after them, as listed, `erase` last. A `_target_` under a name of ours takes its place.

    Raises:
        ConfigError: an unknown name or argument, or a value out of its range; `key` is named.
    """
    recipe: Recipe = []
    for name, given in _entries(value, key):
        if isinstance(given, Mapping) and "_target_" in given:
            recipe.append((name, dict(given)))
        elif name in AUGMENTS:
            recipe.append((name, _arguments(AUGMENTS[name], given, f"{key}.{name}")))
        elif name in (classes := _torchvision_names()):
            recipe.append((name, dict(_mapping(given, f"{key}.{name}"))))
        else:
            raise ConfigError(f"{key}: unknown augmentation {name!r}{_nearest(name, [*AUGMENTS, *classes])}")
    names = list(AUGMENTS)
    place = {name: float(i) for i, name in enumerate(names)}
    recipe.sort(key=lambda entry: place.get(entry[0], place["erase"] - 0.5))
    return recipe


def parse_batch_augment(value: Any, key: str = "data.batch_augment") -> Recipe:
    """Likewise for the augmentations of whole batches.

    Raises:
        ConfigError: as `parse_augment`; also where the probabilities sum to more than 1.
    """
    recipe: Recipe = []
    for name, given in _entries(value, key):
        if name not in BATCH_AUGMENTS:
            raise ConfigError(f"{key}: unknown batch augmentation {name!r}{_nearest(name, list(BATCH_AUGMENTS))}")
        recipe.append((name, _arguments(BATCH_AUGMENTS[name], given, f"{key}.{name}")))
    total = sum(arguments["prob"] for _, arguments in recipe)
    if total > 1:
        found = ", ".join(f"{name} {arguments['prob']:g}" for name, arguments in recipe)
        raise ConfigError(f"{key}: the probabilities must sum to at most 1, got {total:g} ({found})")
    return recipe


def _entries(value: Any, key: str) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        return [(str(name), given) for name, given in value.items() if given is not None]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key} must be null, a list of names or a mapping name -> arguments, got {value!r}")
    entries: list[tuple[str, Any]] = []
    for item in value:
        if isinstance(item, str):
            entries.append((item, {}))
        elif isinstance(item, Mapping):
            entries += _entries(item, key)
        else:
            raise ConfigError(f"{key}: every entry must be a name or a mapping name -> arguments, got {item!r}")
    names = [name for name, _ in entries]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{key}: {repeated!r} is listed twice")
    return entries


def _mapping(given: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{key} must be a mapping of arguments ({{}} for the defaults, null to remove it), got {given!r}"
        )
    return {str(name): value for name, value in given.items()}


def _arguments(schema: type, given: Any, key: str) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = get_type_hints(schema)
    arguments = {name: getattr(schema(), name) for name in fields}
    for name, value in _mapping(given, key).items():
        if name not in fields:
            allowed = ", ".join(fields) or "none"
            raise ConfigError(f"{key}: unknown argument {name!r}{_nearest(name, list(fields))} (arguments: {allowed})")
        arguments[name] = _checked(value, hints[name], fields[name].metadata, f"{key}.{name}")
    return arguments


def _checked(value: Any, hint: Any, limits: types.MappingProxyType[Any, Any], key: str) -> Any:
    if get_origin(hint) is list:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ConfigError(f"{key} must be a range [low, high], got {value!r}")
        low, high = (_checked(item, get_args(hint)[0], limits, key) for item in value)
        if low > high:
            raise ConfigError(f"{key} must be a range [low, high] with low <= high, got {value!r}")
        return [low, high]
    if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else int):
        raise ConfigError(f"{key} must be {'a number' if hint is float else 'a whole number'}, got {value!r}")
    rules = {"gt": (">", value > limits.get("gt", value - 1)), "ge": (">=", value >= limits.get("ge", value))}
    rules |= {"lt": ("<", value < limits.get("lt", value + 1)), "le": ("<=", value <= limits.get("le", value))}
    if value != value or not all(holds for _, holds in rules.values()):
        bounds = " and ".join(f"{sign} {limits[name]:g}" for name, (sign, _) in rules.items() if name in limits)
        raise ConfigError(f"{key} must be {bounds or 'a number'}, got {value!r}")
    return hint(value)


def _torchvision_names() -> list[str]:
    """The classes that torchvision.transforms.v2 exports, read from its source: importing it takes seconds."""
    import ast

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    source = Path(spec.origin).parent / "transforms" / "v2" / "__init__.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = (alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names)
    return sorted(name for name in imported if name[:1].isupper() and name not in NOT_AUGMENTS)


def _nearest(name: str, names: list[str]) -> str:
    import difflib

    by_lower = {known.lower(): known for known in reversed(names)}  # ours before torchvision's
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(names[:12])}"
