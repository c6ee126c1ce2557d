"""What design and schema promise: imports point down, composing needs no torch, the schema fits the constructors."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import app
from app.config.command_line import CONF
from app.config.schema import GROUPS, register
from app.config.schema.data import DataConf
from app.config.schema.hooks import HOOKS
from app.config.schema.runtime import BACKENDS
from app.config.schema.source import OPTIONS
from app.config.targets import resolve

ROOT = Path(app.__file__).parent
LAYERS = (
    "__main__ cli report hooks.base",
    "launch job",
    "build resume runs.summary engine.trial",
    "engine hooks",
    "checkpoint.contents runs.provenance",
    "core.hook data models visualizer metrics optim checkpoint.weights checkpoint.compatibility",
    "core.nonfinite core.speed core.state metrics.class_scores optim.param_groups",
    "checkpoint",
    "core.ranks core.parallel",
    "config",
    "core log process runs config.schema metrics.names",
    "suggest",
    "errors files",
)
"""Modules (and packages) from top to bottom; each imports only its own layer and those below."""


def module_names() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix("__init__").removesuffix(".") for path in paths)


def imports(module: str, *, inside_functions: bool) -> Iterator[str]:
    """Modules of ours that `module` imports when it runs, relative to `app`."""
    place = ROOT / module.replace(".", "/")
    tree = ast.parse((place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text())
    known = set(module_names())
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "app":
            parent = node.module.removeprefix("app").lstrip(".")
            for alias in node.names:
                full = f"{parent}.{alias.name}".lstrip(".")
                yield full if full in known else parent


def layer(module: str) -> int:
    """The layer of a module: of its own name, else of its package's."""
    parts = module.split(".")
    for name in (".".join(parts[:size]) for size in range(len(parts), 0, -1)):
        for index, names in enumerate(LAYERS):
            if name in names.split():
                return index
    raise AssertionError(f"app.{module} has no layer: add it to LAYERS")


@pytest.mark.parametrize("module", [name for name in module_names() if name])
def test_imports_only_point_down(module: str) -> None:
    upward = [other for other in imports(module, inside_functions=True) if other and layer(other) < layer(module)]
    assert not upward or module == "cli", f"app.{module} imports from a higher layer: {upward}"


def test_there_is_no_import_cycle() -> None:
    graph = {name: set(imports(name, inside_functions=False)) - {name} for name in module_names()}
    while free := [name for name, others in graph.items() if not others]:
        graph = {name: others - set(free) for name, others in graph.items() if others}
    assert not graph, f"cycles among {sorted(graph)}"


def test_hooks_know_neither_the_engine_nor_each_other() -> None:
    for name in (name for name in module_names() if name.startswith("hooks.")):
        others = set(imports(name, inside_functions=True))
        assert "engine.loop" not in others
        assert not {other for other in others if other.startswith("hooks.") and other != "core.hook"}, name
    assert {other for other in imports("engine.loop", inside_functions=True) if "hook" in other} == {"core.hook"}


def test_composing_and_help_import_neither_torch_nor_numpy() -> None:
    modules = [name for name in module_names() if layer_is_light(name)]
    script = f"import sys, importlib\nfor name in {modules}: importlib.import_module('app.' + name)\n"
    script += "heavy = {'torch', 'numpy', 'torchvision', 'submitit'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True)


def layer_is_light(name: str) -> bool:
    return name.startswith(("config.", "schema.")) or name in (
        "cli",
        "launch.plugins",
        "launch.queue",
        "launch.compose",
    )


def own_keys(schema: type, common: type | None = None) -> set[str]:
    ignored = {"_target_", "priority"} | ({field.name for field in fields(common)} if common else set())
    return {field.name for field in fields(schema)} - ignored


def constructor_keys(target: str) -> set[str]:
    parameters = inspect.signature(resolve(target, "test")).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", [name for name in HOOKS if name != "checkpoint"])
def test_a_hook_inherits_its_schema(name: str) -> None:
    assert issubclass(resolve(HOOKS[name]._target_, "test"), HOOKS[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_schema_is_the_constructor(name: str) -> None:
    given = {"folder", "run_name", "experiment", "group"}
    assert own_keys(BACKENDS[name]) | given == constructor_keys(BACKENDS[name]._target_)


@pytest.mark.parametrize("name", [name for name in GROUPS["data"] if name != "custom"])
def test_data_schema_is_the_function(name: str) -> None:
    schema = GROUPS["data"][name]
    arguments = constructor_keys(schema._target_)
    assert own_keys(schema, DataConf) <= arguments <= own_keys(schema)


@pytest.mark.parametrize("name", [name for name in GROUPS["model"] if name != "custom"])
def test_model_schema_is_the_constructor(name: str) -> None:
    assert own_keys(GROUPS["model"][name]) - {"init"} == constructor_keys(GROUPS["model"][name]._target_)


@pytest.mark.parametrize("name", [name for name in GROUPS["schedule"] if name != "custom"])
def test_schedule_schema_is_the_function(name: str) -> None:
    schema = GROUPS["schedule"][name]
    assert own_keys(schema) | {"total_steps", "steps_per_unit"} == constructor_keys(schema._target_)


def test_every_option_and_experiment_composes() -> None:
    register()
    importlib.import_module("app.runs.folder").register_resolver()
    importlib.import_module("app.launch.plugins").register()
    groups: dict[str, list[str]] = {}
    for name in [path.relative_to(CONF).with_suffix("").as_posix() for path in sorted(CONF.rglob("*.yaml"))] + [
        *OPTIONS
    ]:
        if not name.startswith("schema/"):
            groups.setdefault(str(Path(name).parent), []).append(Path(name).name)
    experiments = groups.pop("experiment")
    assert {".", "model", "hydra/launcher"} < set(groups)
    del groups["."]
    rounds = [[f"experiment={name}"] for name in experiments]
    for turn in range(max(map(len, groups.values()))):  # an option of each group at a time
        signs = {"hooks": "+", "visualizer": "+"}
        rounds.append([f"{signs.get(g, '')}{g}={names[turn % len(names)]}" for g, names in groups.items()])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for settings in rounds:
            compose("config", settings)


def test_a_file_is_kept_only_where_it_says_something() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        said = [line for line in lines if line.strip(" -") and not line.lstrip().startswith(("#", "defaults:", "-"))]
        assert said, f"{path} only names its schema: the group's table offers the option"
        assert any(line.startswith("# ") and "@package" not in line for line in lines), f"{path}: what is it for?"
