"""Which classes a config may name in `_target_`, and whether they take the arguments given.

Hydra's `instantiate` calls whatever a YAML file names, and its own blocklist says of itself that it is no boundary. So
every `_target_` is held to a list of allowed prefixes as a string, before anything is imported, and what it resolves
to is held to it again.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import ConfigError
from app.suggest import did_you_mean

ENVIRONMENT = "APP_TRUSTED_PACKAGES"
OURS = (
    "app.data.",
    "app.hooks.",
    "app.metrics.losses.",
    "app.metrics.metrics.",
    "app.models.",
    "app.optim.optimizer.",
    "app.optim.schedule.",
    "app.visualizer.",
)
LIBRARIES = (
    "timm.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "torchvision.datasets.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.",
)
REFUSED = ("torchvision.datasets.utils.", "timm.utils.", "timm.models._", "torch.nn.parallel.")
"""Parts of the libraries that read or write files: nothing to build an experiment from."""
PUBLIC = frozenset({"timm.create_model"})
"""Public names of what a library keeps in a private module."""
HYDRA = ("hydra._internal.core_plugins.", "hydra_plugins.", "hydra.experimental.callbacks.")
"""Also allowed below the `hydra` key."""
LOGGING = ("app.log.", "logging.", "rich.logging.", "colorlog.")
"""Where the classes that a `hydra.job_logging` may name are, besides the user's own packages."""


def trusted_packages() -> frozenset[str]:
    """The packages that the person who started this process trusts."""
    return frozenset(name.strip() for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip())


def trust(packages: Collection[str]) -> None:
    """Trusts `packages` in this process and in those that it starts."""
    if packages:
        os.environ[ENVIRONMENT] = ",".join(sorted(trusted_packages() | set(packages)))


def find_targets(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_` in a tree of plain values, outermost first, with its dotted key."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from find_targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from find_targets(value, f"{key}[{index}]")


def refusal(target: object, key: str, more: tuple[str, ...] = ()) -> str | None:
    """Why `target`, a string, may not be used; None when it may. Imports nothing. `more` prefixes are allowed too."""
    where = f"{key}._target_"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        return f"{where} must be the dotted name of a class or function, got {target!r}"
    top = target.partition(".")[0]
    # A private name of a library promises nothing: torchvision's private builders unpickle what they download.
    private = top in {name.partition(".")[0] for name in (*OURS, *LIBRARIES)} and any(
        part.startswith("_") for part in target.split(".")
    )
    if allowed(target, more) and not private:
        return None
    return (
        f"{where}: {target} is not trusted; allowed are this program's own classes, torch.nn, torch.optim, "
        f"torchvision, torchmetrics, timm, and packages below the current directory ({Path.cwd()}). "
        f"If you trust it, add trusted_packages=[{top}] on the command line or set {ENVIRONMENT}={top}"
    )


def refusals(tree: Mapping[str, Any]) -> Iterator[str]:
    """The refused `_target_`s of a whole configuration, as strings."""
    for key, node in find_targets(tree):
        problem = refusal(node["_target_"], key)
        if problem is not None:
            yield problem


def hydra_refusals(config: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """What below the `hydra` key would run code that is not trusted; `config` is the whole, uninterpolated."""
    hydra = config["hydra"]
    sections = {name: hydra.get(name) for name in ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")}
    sections["job.env_set"] = variables = (hydra.get("job") or {}).get("env_set") or {}
    for name, section in sections.items():
        yield from _hidden(section, f"hydra.{name}", config)
        if name.endswith("_logging"):
            yield from _logging_refusals(section, f"hydra.{name}")
        for key, node in find_targets(section, f"hydra.{name}"):
            try:
                resolve(node["_target_"], key, HYDRA)
            except ConfigError as error:
                yield str(error)
    typed = [word for word in overrides if word.lstrip("+").startswith("hydra.job.env_set")]
    for variable in variables if isinstance(variables, Mapping) else ():
        if not any(variable in word for word in typed):  # PATH, GIT_… and LD_… choose what this process runs
            yield (
                f"hydra.job.env_set.{variable} is set in a file; variables of the process are set in the environment "
                f"or on the command line: hydra.job.env_set.{variable}=…"
            )
    if ENVIRONMENT in variables:
        yield f"hydra.job.env_set.{ENVIRONMENT}: what is trusted is said on the command line or in the environment only"


def _hidden(node: Any, key: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Interpolations that may turn into a mapping, unseen until Hydra resolves them: all but those of plain values."""
    if isinstance(node, (Mapping, list)):
        for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _hidden(value, f"{key}.{name}", config)
    elif isinstance(node, str) and node.startswith("${") and node.endswith("}") and not node.startswith("${oc.env:"):
        named: Any = config
        for part in node[2:-1].split("."):
            named = named.get(part) if isinstance(named, Mapping) else None
        if named is None or isinstance(named, (Mapping, list)) or str(named).startswith("${"):
            yield f"{key}={node} is not allowed; here ${{…}} may name a key with a plain value, or oc.env"


def _logging_refusals(node: Any, key: str) -> Iterator[str]:
    """`logging.config` calls what `()` and the like name, and imports what follows `ext://`."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        if not isinstance(value, str):
            yield from _logging_refusals(value, f"{key}.{name}")
        elif name in ("()", "class", "queue", "listener"):
            yield from _logging_class_problems(value, f"{key}.{name}")
        elif value.startswith("ext://") and value not in ("ext://sys.stdout", "ext://sys.stderr"):
            yield f"{key}.{name}: {value} is not allowed; ext://sys.stdout and ext://sys.stderr are"


def _logging_class_problems(name: str, key: str) -> Iterator[str]:
    found = None
    if name.startswith(LOGGING) or allowed(name):
        try:
            found = _import(name, key)
        except ConfigError as error:
            yield str(error)
            return
    if not (isinstance(found, type) and issubclass(found, (logging.Handler, logging.Formatter, logging.Filter))):
        yield f"{key}: {name} is not trusted; use a handler or formatter class of Python's logging or your own package"


def allowed(name: str, more: tuple[str, ...] = ()) -> bool:
    """True when the dotted `name` is ours, a known library's, or of a package that the user trusts."""
    if name.startswith(REFUSED) or any(part.startswith("__") for part in name.split(".")):
        return False
    if name.startswith((*OURS, *LIBRARIES, *more)):
        return True
    top = name.partition(".")[0]
    return top in trusted_packages() or (top != "app" and _is_local(top))


def _is_local(top: str) -> bool:
    """True for a package or module that Python would import from below the current directory."""
    if top in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    here = Path.cwd().resolve()
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or [spec.origin or ""])]
    return bool(places) and all(
        place.is_relative_to(here) and not {"site-packages", "dist-packages"} & set(place.parts) for place in places
    )


def resolve(target: str, key: str, more: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Imports what `target` names.

    Raises:
        ConfigError: it is not trusted, cannot be imported, or is something else than it is called.
    """
    problem = refusal(target, key, more)
    if problem is not None:
        raise ConfigError(problem)
    found = _import(target, f"{key}._target_")
    if not callable(found) or inspect.ismodule(found):
        raise ConfigError(f"{key}._target_: {target} is a {type(found).__name__}, not a class or function")
    identity = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}".replace(".<locals>", "")
    if not allowed(identity, more) and target not in PUBLIC:
        raise ConfigError(f"{key}._target_: {target} is another name of {identity}, which is not trusted")
    made: Callable[..., Any] = found
    return made


def _import(target: str, where: str) -> Any:
    parts = target.split(".")
    module = None
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ConfigError(f"{where}: {target} cannot be imported: {error}; install {error.name}") from error
            if module is None:
                advice = (
                    f"; pip install {name}"
                    if name in ("timm", "torchmetrics", "torchvision")
                    else (f"; it is looked for in {Path.cwd()} and among the installed packages")
                )
                raise ConfigError(f"{where}: there is no package '{name}'{advice}") from error
            break
        except Exception as error:
            raise ConfigError(f"{where}: importing {name} failed: {type(error).__name__}: {error}") from error
    found: Any = importlib.import_module(parts[0])
    for count, part in enumerate(parts[1:], 1):
        try:
            found = getattr(found, part)
        except AttributeError:
            if (name := ".".join(parts[: count + 1])) in sys.modules:  # Hydra's plugins are no attributes
                found = sys.modules[name]
                continue
            parent = ".".join(parts[:count])
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ConfigError(f"{where}: {parent} has no '{part}'{did_you_mean(part, public, f'{parent}.')}") from None
    return found
