"""Which `_target_`s are trusted: as strings before anything is imported, and again as what they resolve to."""

import inspect
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.config import targets
from app.config.arguments import binding_problems
from app.errors import ConfigError

HOSTILE = [
    "os.system", "posix.system", "subprocess.run", "builtins.eval", "builtins.open", "pathlib.Path.write_text",
    "shutil.copyfile", "urllib.request.urlretrieve", "numpy.load", "torch.load", "torch.hub.load",
    "torch.utils.cpp_extension.load_inline", "torch.distributed.run.main", "multiprocessing.Process",
    "torchvision.datasets.utils.download_url", "torchvision.io.write_file", "socket.socket", "importlib.import_module",
    "hydra.utils.instantiate", "omegaconf.OmegaConf.save", "app.runs.folder.write_json", "app.cli.entry",
    "app.checkpoint.directory.save",
    "functools.partial", "runpy.run_path", "torch.nn.__builtins__.eval", "timm.utils.x", "yaml.unsafe_load",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_unimported(name: str) -> None:
    before = set(sys.modules)
    problem = targets.refusal(name, "hooks.x")
    assert problem is not None
    assert problem.startswith(f"hooks.x._target_: {name} is not trusted")
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["", "Net", "a..b", "a.b()", "a b.c", "__import__('os').x", 3, None, ["a.b"]])
def test_names_must_be_names(name: object) -> None:
    problem = targets.refusal(name, "model")
    assert problem is not None
    assert "model._target_ must be the dotted name" in problem


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "torch.optim.SGD", "torchvision.models.resnet18", "app.models.lenet.LeNet5"]
)
def test_known_libraries_resolve(name: str) -> None:
    assert targets.refusal(name, "model") is None
    assert callable(targets.resolve(name, "model"))


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("app.models.lenet.torch.load", "torch.serialization.load"),
        ("app.data.hold.shutil.rmtree", "shutil._RmtreeType|shutil.rmtree"),
        ("app.data.hold.os.system", "posix.system"),
        ("torch.nn.modules.module.torch.hub.load", "torch.hub.load"),
    ],
)
def test_another_name_of_something_else_is_refused(name: str, real: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is (another name of ({real})|a )"):
        targets.resolve(name, "model")


def test_a_module_is_no_class() -> None:
    with pytest.raises(ConfigError, match="is a module, not a class or function"):
        targets.resolve("torch.nn.functional", "model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(targets.ENVIRONMENT, "")
    return tmp_path


def test_packages_below_the_current_directory_are_the_users(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "target_local").mkdir()
    (here / "target_local" / "nets.py").write_text("import os\n\nclass Net:\n    pass\n")
    assert targets.refusal("target_local.nets.Net", "model") is None
    assert targets.resolve("target_local.nets.Net", "model").__name__ == "Net"
    with pytest.raises(ConfigError, match=r"is another name of posix\.system, which is not trusted"):
        targets.resolve("target_local.nets.os.system", "model")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert targets.refusal("target_local.nets.Net", "model") is not None, "it is not below the current directory"


def test_a_folder_with_a_library_s_name_is_no_way_in(here: Path) -> None:
    for name in ("os", "yaml", "filelock"):
        (here / name).mkdir()
        (here / name / "x.py").write_text("")
    assert not targets.allowed("os.system")
    (here / "venv" / "site-packages" / "installed_elsewhere").mkdir(parents=True)
    (here / "venv" / "site-packages" / "installed_elsewhere" / "__init__.py").write_text("def f(): pass\n")
    sys.path.insert(0, str(here / "venv" / "site-packages"))
    try:
        assert not targets.allowed("installed_elsewhere.f")
    finally:
        sys.path.pop(0)


def test_trust_reaches_processes_started_from_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not targets.allowed("some_package.f")
    targets.trust(["some_package"])
    assert targets.allowed("some_package.f")
    assert targets.trusted_packages() == {"some_package"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1/0", "importing broken_module failed: ZeroDivisionError"),
        ("import not_installed_at_all", "install not_installed_at_all"),
        ("def fine(): pass", r"broken_module has no 'fin'; did you mean 'broken_module\.fine'"),
    ],
)
def test_what_goes_wrong_in_an_import_is_said(
    here: Path, content: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "broken_module.py").write_text(content)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    name = "broken_module.fin" if "fine" in content else "broken_module.Class"
    with pytest.raises(ConfigError, match=message):
        targets.resolve(name, "model")


def test_every_target_of_a_tree_is_found() -> None:
    tree = {"a": {"_target_": "x.Y", "b": [{"_target_": "z.W"}, {"c": {"_target_": "v.U"}}]}, "d": 3}
    assert [key for key, _ in targets.find_targets(tree)] == ["a", "a.b[0]", "a.b[1].c"]


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ({"callbacks": {"x": {"_target_": "os.remove"}}}, "hydra.callbacks.x._target_: os.remove is not trusted"),
        ({"callbacks": {"x": {"_target_": "app.runs.folder.os.remove"}}}, "app.runs.folder.os.remove is not trusted"),
        (
            {"callbacks": {"x": {"_target_": "hydra._internal.core_plugins.basic_sweeper.OmegaConf.save"}}},
            "is another name of",
        ),
        ({"callbacks": {"x": "${oc.create:'{_target_: os.remove}'}"}}, "hydra.callbacks.x=${oc.create"),
        ({"callbacks": {"x": "${hooks.mine.settings}"}}, "hydra.callbacks.x=${hooks.mine.settings} is not allowed"),
        ({"callbacks": "${hooks}"}, "hydra.callbacks=${hooks} is not allowed"),
        ({"launcher": {"_target_": "os.remove"}}, "hydra.launcher._target_: os.remove is not trusted"),
        ({"launcher": {"partition": "${oc.env:PARTITION}"}}, None),
        ({"sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}}, None),
        ({"job_logging": {"root": {"level": "${logging.level}"}}}, None),
        ({"job_logging": {"handlers": {"a": {"class": "logging.FileHandler"}}}}, None),
        ({"job_logging": {"handlers": {"a": {"class": "app.log.ConsoleHandler"}}}}, None),
        ({"job_logging": {"handlers": {"a": {"()": "shutil.rmtree"}}}}, "shutil.rmtree is not trusted"),
        ({"job_logging": {"handlers": {"a": {"()": "logging.os.system"}}}}, "logging.os.system is not trusted"),
        ({"job_logging": {"handlers": {"a": {"()": "logging.config.fileConfig"}}}}, "fileConfig is not trusted"),
        ({"job_logging": {"handlers": {"a": "${hooks.mine.settings}"}}}, "job_logging.handlers.a=${hooks"),
        ({"job_logging": {"handlers": {"a": {"stream": "ext://os.environ"}}}}, "ext://os.environ is not allowed"),
        ({"hydra_logging": {"handlers": {"a": {"stream": "ext://sys.stdout"}}}}, None),
        ({"job": {"env_set": {"APP_TRUSTED_PACKAGES": "os"}}}, "hydra.job.env_set.APP_TRUSTED_PACKAGES"),
        ({"job": {"env_set": {"PATH": "/evil"}}}, "hydra.job.env_set.PATH is set in a file"),
        ({"job": {"env_set": "${hooks.mine.settings}"}}, "hydra.job.env_set=${hooks"),
    ],
)
def test_hydra_s_own_section(node: dict[str, object], problem: str | None) -> None:
    config = {"hydra": node, "logging": {"level": "INFO"}, "hooks": {"mine": {"settings": {"_target_": "os.remove"}}}}
    problems = list(targets.hydra_refusals(config, []))
    assert (problems == []) if problem is None else (problem in problems[0])


def test_nothing_of_a_file_s_hydra_section_runs(tmp_path: Path) -> None:
    """Hydra instantiates callbacks and configures logging itself, past our own gate, and resolves what it finds."""
    trap = tmp_path / "trap"
    (tmp_path / "experiment").mkdir()
    for position, section in enumerate(
        (
            f"callbacks: {{x: {{_target_: app.runs.folder.os.mkdir, path: {trap}}}}}",
            f"callbacks: {{x: \"${{oc.create:'{{_target_: os.mkdir, path: {trap}}}'}}\"}}",
            f'job_logging: {{handlers: {{x: {{"()": logging.os.mkdir, path: {trap}}}}}}}',
        )
    ):
        (tmp_path / "experiment" / f"evil{position}.yaml").write_text(f"# @package _global_\nhydra:\n  {section}\n")
        for sweep in ([], ["--multirun"]):
            words = [*sweep, "--config-dir", str(tmp_path), f"experiment=evil{position}", f"output_root={tmp_path}/out"]
            with pytest.raises(ConfigError, match=r"hydra\.\w+\.(handlers\.)?x"):
                main(words)
            assert not trap.exists()


def make(size: int, *, depth: int = 1) -> None: ...


def make_any(size: int, **more: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "given", "supplied", "count"),
    [
        (make, {"size"}, set(), 0),
        (make, {"siez"}, set(), 2),
        (make, {"depth"}, {"size"}, 0),
        (make, {"depth"}, set(), 1),
        (make_any, {"size", "anything"}, set(), 0),
        (make_any, {"anything"}, set(), 1),
    ],
)
def test_arguments_are_bound(function: object, given: set[str], supplied: set[str], count: int) -> None:
    assert inspect.isfunction(function)
    assert len(binding_problems(function, "model", given, supplied)) == count
