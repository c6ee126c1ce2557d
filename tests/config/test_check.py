"""The checks of a composed configuration, below the command line (test_bad_input.py beside it goes through it)."""

import math
from collections.abc import Callable, Iterator

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from app.config.check import check, home_of, require, resolved, schema_keys
from app.config.command_line import CONF
from app.config.limits import check_limits, range_text
from app.config.schema import GROUPS, register
from app.config.schema.knob import knob
from app.config.suggest import OTHER_NAMES
from app.errors import ConfigError
from app.launch.plugins import register as register_launchers
from app.runs import folder

Compose = Callable[..., DictConfig]

NEEDED = {
    "loss=custom": ["loss._target_=torch.nn.CrossEntropyLoss"],
    "data=folder": ["data.root=d"],
    "data=custom": ["data._target_=app.data.fake.fake"],
    "model=custom": ["model._target_=app.models.lenet.LeNet5"],
    "model=torchvision": ["model.name=resnet18"],
    "optim=custom": ["optim._target_=torch.optim.SGD"],
    "optim=torch": ["optim.name=NAdam"],
    "schedule=custom": ["schedule._target_=app.optim.schedule.constant"],
    "schedule=torch": ["schedule.scheduler={_target_: torch.optim.lr_scheduler.ConstantLR}"],
    "schedule=multistep": ["schedule.milestones=[2,3]"],
}


@pytest.fixture(scope="module")
def composed() -> Iterator[Compose]:
    """Composes the root config with settings."""
    register()
    folder.register_resolver()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *settings: compose("config", list(settings), return_hydra_config=True)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_passes(composed: Compose, group: str) -> None:
    if group in ("hooks", "visualizer"):
        everything = f"{group}=[{','.join(GROUPS[group])}]"
        assert check(composed(everything), [everything]) == []
        return
    for option in GROUPS[group]:
        if (group, option) != ("data", "torchvision"):
            settings = [f"{group}={option}", *NEEDED.get(f"{group}={option}", [])]
            assert check(composed(*settings), settings) == [], settings


@pytest.mark.parametrize("experiment", ["digits", "mnist_lenet5", "fashion_mnist", "flowers", "cifar10_resnet18"])
def test_every_experiment_passes(composed: Compose, experiment: str) -> None:
    settings = [f"experiment={experiment}", "data.root=d"] if experiment != "digits" else ["experiment=digits"]
    assert check(composed(*settings), settings) == []


def test_all_problems_at_once(composed: Compose) -> None:
    settings = ["optim.lr=-1", "train.amp=x", "data.batch_size=0", "+train.epochs=3", "model=torchvision"]
    with pytest.raises(ConfigError) as error:
        require(composed(*settings), settings)
    lines = str(error.value).splitlines()
    assert lines[0] == "5 problems"
    assert [line.split()[1] for line in lines[1:]] == [
        "train.amp",
        "unknown",
        "model.name",
        "data.batch_size",
        "optim.lr",
    ]


@pytest.mark.parametrize(
    ("limits", "value", "fine"),
    [
        ({"ge": 1}, 1, True),
        ({"ge": 1}, 0, False),
        ({"gt": 0, "lt": 1}, 1.0, False),
        ({"gt": 0, "lt": 1}, 0.5, True),
        ({"le": 3}, math.inf, False),
        ({}, math.nan, False),
        ({"ge": 1}, None, True),
        ({"ge": 1}, [1, 2, 0], False),
        ({"choices": (False, "off")}, 0, False),
        ({"choices": (False, "off")}, False, True),
        ({"choices": (True, "auto")}, 1, False),
        ({"ge": 0}, True, True),
    ],
)
def test_limits(limits: dict[str, object], value: object, fine: bool) -> None:
    assert (not list(check_limits("key", value, limits))) == fine


def test_range_text() -> None:
    cases = {"in (0, 1)": {"gt": 0, "lt": 1}, "in [0, 1)": {"ge": 0, "lt": 1}, ">= 2": {"ge": 2}, "a finite number": {}}
    for text, limits in cases.items():
        assert range_text(knob(0, "", **limits).metadata) == text  # type: ignore[arg-type]


def test_launcher_options_are_held_to_their_ranges(composed: Compose) -> None:
    settings = ["hydra.launcher.gpus_per_job=0"]
    assert check(composed(*settings), settings) == ["hydra.launcher.gpus_per_job must be >= 1, got 0"]


def test_classes_of_ones_own_may_have_keys_that_no_schema_has(composed: Compose) -> None:
    own = ["hooks.logger._target_=app.hooks.logger.Logger", "+hooks.logger.more=1"]
    assert "unknown key 'hooks.logger.more'" in check(composed(*own), own)[0]
    own = ["hooks.logger._target_=app.hooks.timer.Timer", "+hooks.logger.more=1"]
    assert check(composed(*own), own) == ["hooks.logger._target_: app.hooks has no 'timer'"]


def test_a_secret_is_found_before_its_value_is_shown(composed: Compose) -> None:
    for setting in ("+model.init.password=CANARY", "load_from=https://me:CANARY@host/x", "+env.api_key=CANARY"):
        problems = check(composed(setting), [setting])
        assert problems
        assert "CANARY" not in " ".join(problems)


def test_environment_variables_are_resolved_for_the_checks(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH", "-3")
    config = composed()
    config.data.batch_size = "${oc.env:BATCH}"
    assert check(config) == ["data.batch_size must be >= 1, got -3"]
    assert resolved(config)["data"]["batch_size"] == -3


def test_resolved_leaves_hydra_out(composed: Compose) -> None:
    config = composed()
    assert "hydra" in config
    assert "hydra" not in resolved(config)
    assert OmegaConf.is_config(config.hydra)


def test_what_others_call_a_key_leads_to_one_that_exists() -> None:
    sections = {f"{group}.{name}" for group, names in GROUPS.items() for name in names}
    assert set(OTHER_NAMES) <= {*schema_keys(), *sections, "hydra.run.dir"}
    assert home_of("work_dir") == "hydra.run.dir"
    assert home_of("lr") == "optim.lr"
