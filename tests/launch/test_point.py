"""Identity and folder names of points."""

import pytest

from app.launch.point import LONGEST_NAME, identity, parse, slug, swept

COMMAND = ["optim.lr=0.1,0.03", "randomness.seed=range(3)", "data.root='/a b'", "resume=true", "train.max_epochs=3"]


def name(*overrides: str, command: list[str] = COMMAND) -> str:
    axes = swept(overrides, command)
    return slug(axes, identity(overrides, axes))


def test_names_are_readable_and_do_not_depend_on_the_order() -> None:
    point = ["optim.lr=0.1", "randomness.seed=2", "data.root='/a b'", "resume=true", "train.max_epochs=3"]
    assert name(*point) == "lr-0.1__seed-2"
    assert name(*reversed(point)) == "lr-0.1__seed-2"


def test_what_may_change_on_resume_is_not_identity() -> None:
    before = identity(["optim.lr=0.1", "train.max_epochs=3", "env.device=cpu", "hooks.checkpoint.interval=2"], {})
    after = identity(["resume=true", "optim.lr=1e-1", "visualizer=[local]", "logging.level=DEBUG"], {})
    assert before == after
    assert identity(["optim.lr=0.1", "data.root=x"], {}) != identity(["optim.lr=0.1", "data.root=y"], {})
    assert identity(["train.max_epochs=3"], {"train.max_epochs": 3}) != identity(["train.max_epochs=4"], {})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["hooks=[default,ema]"], "hooks-default+ema"),
        (["+hooks=ema"], "hooks-ema"),
        (["hooks.ema=null"], "ema-null"),
        (["model.width=1", "data.width=2"], "data.width-2__model.width-1"),
        (["data.shuffle=false"], "shuffle-false"),
    ],
)
def test_shapes_of_overrides(overrides: list[str], expected: str) -> None:
    assert name(*overrides, command=[]) == expected


def test_unsafe_and_long_values_get_distinct_safe_names() -> None:
    values = ["a/b", "a b", "a=b", "a,b", "../a", "ä", "x" * 300, "x" * 299 + "y"]
    names = [name(f"model.name='{value}'", command=[]) for value in values]
    assert len(set(names)) == len(values)
    for safe in names:
        assert len(safe) <= LONGEST_NAME
        assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+~-")


def test_spellings_of_a_value_are_one() -> None:
    assert parse("optim.lr=1e-1") == parse("optim.lr=0.1")
    assert parse("model.name='x'") == parse("model.name=x")
