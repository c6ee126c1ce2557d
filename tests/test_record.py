import pytest
from omegaconf import OmegaConf

from app.runs.record import changes, flat, plain


def test_plain_resolves_everything_but_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    cfg = OmegaConf.create(
        {"a": 1, "b": "${a}", "key": "${oc.env:CANARY}", "list": ["${a}", {"c": None}], "gone": "???", "none": None}
    )
    assert plain(cfg) == {
        "a": 1, "b": 1, "key": "${oc.env:CANARY}", "list": [1, {"c": None}], "gone": "???", "none": None,
    }  # fmt: skip


def test_changes_names_every_leaf_that_differs() -> None:
    old = {"a": {"b": 1, "c": 2}, "hooks": {"ema": None}}
    new = {"a": {"b": 1, "c": 3}, "hooks": {"ema": {"momentum": 0.1}}, "d": 4}
    assert changes(old, new) == [
        ("a.c", 2, 3),
        ("hooks.ema.momentum", "(absent)", 0.1),
        ("d", "(absent)", 4),
        ("hooks.ema", None, "(absent)"),
    ]
    assert dict(flat({"x": {}})) == {"x": {}}
