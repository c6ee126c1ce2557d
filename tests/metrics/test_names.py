"""The names and directions of metrics, known before anything is run."""

import inspect
import warnings
from typing import Any

import pytest

from app.errors import ConfigError
from app.metrics.names import direction, metric_rules, resolve, resolve_rule


def config(mode: str = "train", hooks: dict[str, Any] | None = None, **metrics: Any) -> dict[str, Any]:
    defaults = {"topk": [1], "average": ["macro"], "monitor": "auto", "rule": None, "extra": {}}
    return {"mode": mode, "hooks": hooks or {}, "metrics": defaults | metrics}


def test_all_names_in_order_with_their_directions() -> None:
    rules = metric_rules(config(topk=[5, 1], average=["weighted", "micro"]))
    better = dict.fromkeys(["val/top5", "val/top1"], "greater") | {"val/loss": "less"}
    better |= dict.fromkeys(["val/precision", "val/recall", "val/f1"], "greater")
    better |= dict.fromkeys(["val/precision_micro", "val/recall_micro", "val/f1_micro"], "greater")
    assert rules == better
    assert next(iter(rules)) == "val/top5"


def test_a_test_reports_test_metrics_without_origin() -> None:
    both = {"ema": {"evaluate_on_ema": True, "evaluate_on_origin": True}}
    assert all(name.startswith("test/") and "_origin" not in name for name in metric_rules(config("test", both)))
    assert metric_rules(config(hooks=both))["val/loss_origin"] == "less"
    one = {"ema": {"evaluate_on_ema": True, "evaluate_on_origin": False}, "logger": None}
    assert "val/loss_origin" not in metric_rules(config(hooks=one))


def test_auto_is_the_monitored_metric_everywhere() -> None:
    rules = metric_rules(config(monitor="f1"))
    assert resolve("auto", rules) == "val/f1"
    assert resolve("top1", rules) == resolve("val/top1", rules) == "val/top1"
    assert resolve("val/top1", metric_rules(config("test"))) == "test/top1"


@pytest.mark.parametrize(("name", "near"), [("top_1", "top1"), ("val/lss", "loss"), ("F1", "f1")])
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"hooks\.early_stop\.monitor: .*'{name}'.*did you mean '{near}'"):
        resolve(name, metric_rules(config()), key="hooks.early_stop.monitor")


def test_extra_metrics_take_their_direction_from_torchmetrics_or_from_the_user() -> None:
    extra = {
        "kappa": {"_target_": "torchmetrics.CohenKappa"},
        "ece": {"_target_": "torchmetrics.classification.MulticlassCalibrationError"},
        "mine": {"_target_": "my.Metric"},
        "off": None,
    }
    rules = metric_rules(config(extra=extra))
    assert (rules["val/kappa"], rules["val/ece"], rules["val/mine"]) == ("greater", "less", None)
    assert "val/off" not in rules
    assert resolve_rule("val/kappa", rules) == "greater"
    assert resolve_rule("val/mine", rules, "less") == "less"
    with pytest.raises(ConfigError, match=r"metrics\.rule: it is not known which direction of val/mine is better"):
        resolve_rule("val/mine", rules)
    rules = metric_rules(config(extra=extra, monitor="mine", rule="less"))
    assert next(iter(rules)) == "val/mine"
    assert resolve_rule("val/mine", rules) == "less"


@pytest.mark.parametrize(("name", "given"), [("val/top1", "less"), ("val/loss", "greater"), ("val/kappa", "less")])
def test_a_direction_against_the_metric_s_own_is_refused(name: str, given: str) -> None:
    rules = metric_rules(config(monitor=name, rule=given, extra={"kappa": {"_target_": "torchmetrics.CohenKappa"}}))
    with pytest.raises(ConfigError, match=f"here={given} would keep the worst: of {name} the "):
        resolve_rule(name, rules, given, "here")


def test_an_extra_metric_cannot_take_a_built_in_name() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.extra\.loss"):
        metric_rules(config(extra={"loss": {"_target_": "torchmetrics.Accuracy"}}))


def test_directions_agree_with_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics import classification

    known = 0
    for name in classification.__all__:
        found = getattr(classification, name)
        higher = getattr(found, "higher_is_better", None)
        if inspect.isclass(found) and higher is not None and "Fairness" not in name and "GroupStat" not in name:
            assert direction(f"torchmetrics.classification.{name}") == ("greater" if higher else "less"), name
            known += 1
    assert known > 40
