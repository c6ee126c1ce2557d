"""Holds a composed configuration to the schema, before anything is opened or made. Imports no torch.

Hydra refuses a misspelt key on its own, except when it comes with `+` or `++`; ranges, closed sets of values,
contradictions and classes are ours. All problems are listed at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config import targets
from app.config.arguments import argument_problems
from app.config.hook_rules import named_nodes
from app.config.limits import check_limits
from app.config.rules import RULES
from app.config.schema import GROUPS
from app.config.schema.launcher import LAUNCHERS, SWEEPERS
from app.config.schema.root import AppConf
from app.config.suggest import ELSEWHERE, unknown_key
from app.config.wording import listed, show, wrong_type
from app.errors import ConfigError

SECRET = re.compile(
    r"(^|[._])(api_?key|access_?key|secret(_?key)?|private_?key|token|password|passwd|credentials?|wandb\.key)$", re.I
)
CHOSEN = ("model", "data", "optim", "schedule", "loss")
"""Sections that exactly one option fills."""
SECRET_VARIABLE = re.compile(r"\$\{oc\.env:\s*\w*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.I)
URL_SECRET = re.compile(
    r"://[^/\s@]+@|://\S*[?&][\w.-]*(token|api_?key|secret|signature|credential|passw)[\w.-]*=|://\S*[?&]sig=", re.I
)


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> list[str]:
    """All that is wrong with a composed configuration, one message a problem; `overrides` are the command line's."""
    given = {override_key(override) for override in overrides}
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    whole = {"hydra": {}, **raw}
    raw.pop("hydra", None)
    targets.trust(raw.get("trusted_packages") or () if "trusted_packages" in given else ())
    problems = [*check_node(cfg, raw, "", AppConf), *_untrusted_packages(raw, given)]
    problems = problems or [*named_nodes(cfg)]
    if problems:
        return problems
    tree = resolved(cfg)
    for rule in RULES:
        problems += rule(tree, given)
    problems += [*targets.refusals(tree), *targets.hydra_refusals(whole, overrides), *launcher_problems(cfg)]
    return problems or argument_problems(tree)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without Hydra's own part, as plain values."""
    names = [str(name) for name in cfg if name != "hydra"]
    tree: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, names), resolve=True)
    assert isinstance(tree, dict)
    return tree


def require(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raises ConfigError with all that `check` finds."""
    problems = check(cfg, overrides)
    if problems:
        raise ConfigError(listed(problems))


def override_key(override: str) -> str:
    """`+hooks.mine.a=1` -> `hooks.mine.a`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def check_node(node: DictConfig, raw: Mapping[str, Any], prefix: str, schema: type | None) -> Iterator[str]:
    """The problems of one mapping and all below it; `raw` is it uninterpolated, `schema` its dataclass or None."""
    known = {field.name: field for field in fields(schema)} if schema is not None else {}
    is_open = schema is None or is_open_node(raw, schema)
    for name, source in raw.items():
        if is_open or name in known:
            yield from _check_value(node, source, str(name), prefix, known.get(name))
        else:
            yield unknown_key(prefix, str(name), known, home_of(str(name)))


def is_open_node(raw: Mapping[str, Any], schema: type) -> bool:
    """True when other keys are allowed: they are arguments of a class of the user's own."""
    default = next((field.default for field in fields(schema) if field.name == "_target_"), None)
    return default is not None and raw.get("_target_") != default


def launcher_problems(cfg: DictConfig) -> Iterator[str]:
    """Unknown keys of `hydra.launcher` and `hydra.sweeper`, where they are ours, and values out of their ranges."""
    for section in ("hydra.launcher", "hydra.sweeper"):
        node = OmegaConf.select(cfg, section)
        schema = OmegaConf.get_type(node) if node is not None else None
        known = {field.name: field for field in fields(schema)} if is_dataclass(schema) else {}
        for name in node if schema in (*LAUNCHERS.values(), *SWEEPERS.values()) else ():
            if name not in known:  # typed with a +, which Hydra takes for any key
                yield unknown_key(f"{section}.", str(name), known)
        for field in known.values():
            yield from check_limits(f"{section}.{field.name}", node.get(field.name), field.metadata)


def home_of(name: str) -> str | None:
    """The first full key of the schema that ends in `name`, or is what others call so: `lr` -> `optim.lr`."""
    return ELSEWHERE.get(name) or next((full for full in schema_keys() if full.rpartition(".")[2] == name), None)


def schema_keys() -> dict[str, Field[Any]]:
    """Every full key of the schema with its field, the groups' options taken together."""
    found: dict[str, Field[Any]] = {}

    def walk(schema: type, prefix: str) -> None:
        for field in fields(schema):
            found[f"{prefix}{field.name}"] = field
            section: Any = field.default_factory
            if is_dataclass(section):
                walk(section, f"{prefix}{field.name}.")  # type: ignore[arg-type]

    walk(AppConf, "")
    for group, options in GROUPS.items():
        for option, schema in options.items():
            walk(schema, f"{group}.{option}." if group in ("hooks", "visualizer") else f"{group}.")
    return found


def _check_value(node: DictConfig, source: Any, name: str, prefix: str, field: Field[Any] | None) -> Iterator[str]:
    where = prefix + name
    options = f"choose one of: {', '.join(GROUPS.get(where, ()))}"
    if source == "???":
        yield f"{where} is missing; {options if where in GROUPS else f'add {where}=…'}"
        return
    if isinstance(source, str):
        yield from _secret(source, where)
    try:
        value = node[name]
    except OmegaConfBaseException as error:
        yield f"{where}: {interpolation_text(source, error)}"
        return
    if isinstance(value, DictConfig):
        schema = OmegaConf.get_type(value)
        raw: Any = source if isinstance(source, dict) else OmegaConf.to_container(value, resolve=False)
        if not is_dataclass(schema):
            schema = GROUPS[where]["custom"] if where in CHOSEN else None
            yield from _untyped_problems(raw, where, schema)
        yield from check_node(value, raw, f"{where}.", schema)
    elif where in CHOSEN:
        yield f"{where} is {show(value)}, not a section of keys; {options}"
    elif field is not None:
        plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
        yield from check_limits(where, plain, field.metadata)


def _untyped_problems(raw: Mapping[str, Any], where: str, schema: type | None) -> Iterator[str]:
    """A section from a file of the user's own needs the keys that all its kind have, of their types."""
    if schema is None:
        return
    names = [field.name for field in fields(schema)]
    missing = [name for name in names if name not in raw]
    if missing and where not in ("model", "loss"):
        base = f"defaults: [/schema/{where}/custom@_here_, _self_]"
        yield f"{where} lacks {', '.join(missing)}; begin its file with `{base}` to have the common keys"
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {name: raw[name] for name in names if name in raw})
    except OmegaConfBaseException as error:
        yield wrong_type(error, f"{where}.")


def interpolation_text(source: Any, error: Exception) -> str:
    """Why `${…}` has no value."""
    first = str(error).splitlines()[0]
    variable = re.search(r"Environment variable '(\w+)' not found", first)
    if variable:
        default = f"${{oc.env:{variable[1]},DEFAULT}}"
        return f"the environment variable {variable[1]} is not set (in {source}); export it, or write {default}"
    return f"{source} has no value: {first}"


def _secret(source: str, where: str) -> Iterator[str]:
    if source and (SECRET.search(where) or SECRET_VARIABLE.search(source)):
        yield (
            f"{where} looks like a secret, and configurations are written to files and trackers; "
            "leave it out and set it in the environment (WANDB_API_KEY, …) or with the tracker's own login"
        )
    elif URL_SECRET.search(source):
        way = f"export it and write {where}='${{oc.env:ADDRESS}}'"
        yield f"{where} holds a password or token, and configurations are written to files; {way}"


def _untrusted_packages(raw: Mapping[str, Any], given: Collection[str]) -> Iterator[str]:
    if raw.get("trusted_packages") and "trusted_packages" not in given:
        yield (
            "trusted_packages counts only on the command line (trusted_packages=[…]) or in the environment "
            f"({targets.ENVIRONMENT}=…): a file that could name what is trusted could run anything"
        )
