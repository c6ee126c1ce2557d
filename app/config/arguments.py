"""Do the classes of the user, which no schema types, take the arguments that the config gives them?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

from app.config import targets
from app.config.kinds import is_option, kind_problem
from app.config.schema.data import DataConf
from app.config.schema.optim import OptimConf, ScheduleConf
from app.errors import ConfigError
from app.suggest import did_you_mean

SPECIAL = frozenset({"_target_", "_partial_", "_args_", "_convert_", "_recursive_"})
"""Hydra's own keys beside the arguments."""


def argument_problems(tree: Mapping[str, Any]) -> list[str]:
    """Imports the classes of a plain configuration that are not the schema's own, and binds their arguments."""
    problems = []
    for key, node in targets.find_targets(tree):
        if is_option(node["_target_"], key):
            continue
        try:
            found = targets.resolve(node["_target_"], key)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if problem := kind_problem(found, node["_target_"], key):
            problems.append(problem)
            continue
        problems += binding_problems(found, key, *_passed(key, node, found))
    return problems


def _passed(key: str, node: Mapping[str, Any], found: Callable[..., Any]) -> tuple[set[str], set[str]]:
    """The keywords that app/build.py passes on from `node`, and those it adds (passed only where they are taken)."""
    given = set(node) - SPECIAL
    group = key.partition(".")[0]
    if key == "model":
        known = {"num_classes", "in_channels", "image_size"}
        return {name for name in given if name not in known or node[name] is not None} - {"init"}, known
    if key == "data":
        common = {field.name for field in fields(DataConf)}
        return given - common, common | {"split"}
    if key == "optim":
        common = {field.name for field in fields(OptimConf)} | {"params"}
        return (given - common) | set(node.get("args") or ()), common
    if key == "loss":
        return given - {"kind"}, {"num_classes", "reduction"}
    if key == "schedule":
        defaults = {field.name: field.default for field in fields(ScheduleConf)}
        chosen = {name for name in given if name not in defaults or node[name] != defaults[name]}
        return chosen | {"total_steps", "steps_per_unit"}, set(defaults)
    if key == "schedule.scheduler":
        return given, {"optimizer"}
    if group == "hooks" and key.count(".") == 1:
        return given - {"priority"}, set()
    if group == "visualizer" and key.count(".") == 1:
        return given | {"folder", "run_name", "experiment", "group"}, set()
    if key.startswith("metrics.extra."):
        return given, {"num_classes"}
    return given, set()


def binding_problems(
    found: Callable[..., Any], key: str, given: Collection[str], supplied: Collection[str]
) -> list[str]:
    """What is wrong with calling `found` with the keywords `given`; those of `supplied` that it takes are added."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return []
    parameters = signature.parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        names = None
    else:
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    title = f"{found.__module__}.{found.__qualname__}"
    problems = []
    if names is not None:
        takes = ", ".join(name for name in names if name not in supplied) or "none"
        problems += [
            f"{key}.{name} is not an argument of {title}{did_you_mean(name, names, f'{key}.')} (arguments: {takes})"
            for name in given
            if name not in names
        ]
    problems += [
        f"{key}.{parameter.name} is missing: {title} needs it; add +{key}.{parameter.name}=…"
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in given
        and parameter.name not in supplied
    ]
    return problems
