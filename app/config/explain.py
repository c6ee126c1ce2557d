"""Hydra's and OmegaConf's errors in words for a person: the key or file, what is wrong, what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from app.config.check import home_of, override_key
from app.config.schema import GROUPS
from app.config.suggest import unknown_key
from app.config.wording import wrong_type
from app.errors import RunError
from app.suggest import did_you_mean, nearest

OptionsOf = Callable[[str], Sequence[str]]
"""The options of a config group, by its name."""

NOISE = re.compile(
    r"\n*(To append to your|Set the environment|Config search path|See https?:|Search path:)[^\0]*", re.M
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what led to it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: Exception, settings: Sequence[str], options_of: OptionsOf, folders: Sequence[Path]) -> str:
    """One message for an error that came up while composing."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, RunError):
            return str(cause)
        if isinstance(cause, OverrideParseException):
            return _grammar(cause)
        if isinstance(cause, yaml.YAMLError):
            return _yaml(cause)
        if isinstance(cause, MissingConfigException):
            return _missing_config(cause, options_of)
    where = _file(str(error), folders)
    keyed = next((c for c in chain if isinstance(c, OmegaConfBaseException) and c.full_key), None)
    if isinstance(keyed, (ConfigKeyError, ConfigAttributeError)):
        return where + _unknown(keyed, options_of)
    if isinstance(keyed, ValidationError):
        return where + wrong_type(keyed)
    if isinstance(keyed, ConfigTypeError) and "Cannot merge DictConfig with ListConfig" in str(keyed):
        return f"{where}{keyed.full_key} must be a list: put the mapping into brackets, {keyed.full_key}=[{{…}}]"
    return where + _by_text(str(error), settings)


def culprit(error: Exception, settings: Sequence[str]) -> str | None:
    """The setting that an error is about, as far as it says."""
    text = str(error)
    for cause in causes(error):
        if isinstance(cause, OverrideParseException):
            return cause.override if cause.override in settings else None
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, option = str(cause.missing_cfg_file).rpartition("/")
            pattern = re.compile(rf"\+?{re.escape(group)}(@[^=]*)?=.*\b{re.escape(option)}\b")
            return next((word for word in settings if pattern.match(word)), None)
    if text.startswith("In '"):
        return None
    return next((word for word in settings if word in text or f"'{override_key(word)}'" in text), None)


def _unknown(error: OmegaConfBaseException, options_of: OptionsOf) -> str:
    full = str(error.full_key)
    prefix, name = full[: -len(str(error.key))], str(error.key)
    parent: Any = error.parent_node
    known = [str(key) for key in parent] if parent is not None else []
    group = prefix.rstrip(".")
    if group in ("hooks", "visualizer"):
        options = [option for option in options_of(group) if option != "default"]
        if name in options:
            return f"{full} is not selected; add `+{group}={name}` (selected: {', '.join(known) or 'none'})"
        return unknown_key(prefix, name, sorted({*known, *options}))
    if isinstance(parent, DictConfig) and not known:
        return f"unknown key '{full}'; {group} is empty, and what is added to it needs a +: +{full}=…"
    if not prefix:
        known = sorted({*known, "experiment"} - {"hydra"})
    schemas = GROUPS.get(group, {}).items()
    owners = [option for option, schema in schemas if any(field.name == name for field in fields(schema))]
    if owners and nearest(name, known) is None:
        choices = [f"{group}={owner}" if owner in options_of(group) else f"others of {group}" for owner in owners]
        return f"unknown key '{full}'; it is a key of {', '.join(choices)} (keys: {', '.join(sorted(known))})"
    if group in GROUPS and home_of(name) is None and nearest(name, known) is None:
        own = f"an argument of a class of your own ({group}=custom) needs a +: +{full}=…"
        return f"unknown key '{full}'; {own} (keys: {', '.join(sorted(known))})"
    return unknown_key(prefix, name, known, home_of(name))


def _missing_config(error: MissingConfigException, options_of: OptionsOf) -> str:
    missing = str(error.missing_cfg_file)
    group, _, option = missing.rpartition("/")
    if not group:
        return NOISE.sub("", str(error)).strip().replace("\n", " ")
    options = list(error.options or options_of(group))
    source = re.match(r"In '([^']+)'", str(error))
    where = f" (asked for by {source[1]}.yaml)" if source and source[1] not in ("config", "hydra/config") else ""
    if not options:
        groups = [*GROUPS, "experiment", "randomness", "logging", "env"]
        return f"there is no config group '{group}'{did_you_mean(group, groups)}{where}"
    near = did_you_mean(option, options, f"{group}=")
    more = f"; torchvision's models: model=torchvision model.name={option}" if group == "model" else ""
    return f"{group} has no option '{option}'{near}{where} (options: {', '.join(sorted(options))}{more})"


def _grammar(error: OverrideParseException) -> str:
    word = str(error.override)
    key, _, value = word.partition("=")
    value = value.replace('"', '\\"')
    reason = NOISE.sub("", str(error)).strip().splitlines()[-1]
    quoted = f"'{key}=\"{value}\"'"
    return f"cannot read '{word}' ({reason}); a value with special characters needs quotes within quotes: {quoted}"


def _yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "a config file"
    return f"{place} is not valid YAML: {getattr(error, 'problem', None) or error}"


def _file(text: str, folders: Sequence[Path]) -> str:
    """`conf/experiment/mine.yaml: `, where the error says which config file it was found in."""
    found = re.match(r"In '([^']+)'", text)
    if not found:
        return ""
    path = next((folder / f"{found[1]}.yaml" for folder in folders if (folder / f"{found[1]}.yaml").is_file()), None)
    return f"{path or found[1]}: "


def _by_text(text: str, settings: Sequence[str]) -> str:
    ambiguous = re.match(r"Ambiguous value for argument '([^=]*)=(.*)'", text)
    if ambiguous:
        key, value = ambiguous[1], ambiguous[2]
        return f"{key}={value} has commas: for a list write '{key}=[{value}]'; to sweep over the values add --multirun"
    exists = re.search(r"An item is already at '([^']+)'", text)
    if exists:
        return f"{exists[1]} exists already; write it without the +"
    repeated = re.match(r"Multiple values for ([\w/]+)", text)
    if repeated:
        once = f"+{repeated[1]}=[…,…]" if repeated[1] in ("hooks", "visualizer") else f"{repeated[1]}=… without +"
        return f"{repeated[1]} is chosen more than once; give it once, as {once}"
    deleted = re.match(r"Could not delete from config\. '([^']+)' does not exist", text)
    if deleted:
        prefix, _, name = deleted[1].rpartition(".")
        known: Iterable[str] = GROUPS.get(prefix, ()) if prefix else GROUPS
        return f"~{deleted[1]}: there is no such key{did_you_mean(name, known, f'{prefix}.' if prefix else '')}"
    no_match = re.search(r"Could not override '([^']+)'\. No match in the defaults list", text)
    if no_match:
        group = no_match[1].partition("@")[0]
        near = nearest(group, [*GROUPS, "experiment", "randomness", "logging", "env", "hydra/launcher"])
        return f"there is no config group '{group}' to choose from" + (f"; did you mean '{near}'?" if near else "")
    body = re.sub(r"^In '[^']+': \w+ raised while composing config:\n", "", NOISE.sub("", text)).strip()
    return re.sub(r"\s*\n\s*", "; ", body)


def is_hydra_error(error: Exception) -> bool:
    """True for errors that the user's input causes, not a bug of ours."""
    return any(isinstance(c, (HydraException, OmegaConfBaseException, yaml.YAMLError)) for c in causes(error))
