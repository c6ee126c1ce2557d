"""The names of the metrics that an evaluation will report, and which way is better; known before anything is run.

Imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.errors import ConfigError
from app.suggest import did_you_mean

GREATER = (
    *("AUROC", "Accuracy", "AveragePrecision", "CohenKappa", "ExactMatch", "F1Score", "FBetaScore", "JaccardIndex"),
    *("LogAUC", "MatthewsCorrCoef", "NegativePredictiveValue", "Precision", "RankingAveragePrecision", "Recall"),
    "Specificity",
)
LESS = ("CalibrationError", "CoverageError", "HammingDistance", "HingeLoss", "RankingLoss")
"""torchmetrics' classification metrics by direction, without the prefix Binary, Multiclass or Multilabel."""


def metric_rules(config: Mapping[str, Any]) -> dict[str, str | None]:
    """`phase/quantity` -> `greater`, `less` or None (not known) for all metrics of an evaluation.

    The first is the run's metric: what `auto` means, what is reported, and what its best checkpoint is the best by.
    It is `metrics.monitor`; with `auto` there, what early stopping watches, else the first of `metrics.topk`. `config`
    is the whole configuration as plain values.

    Raises:
        ConfigError: one of metrics.extra has the name of a built-in metric.
    """
    metrics = config["metrics"]
    quantities: dict[str, str | None] = {f"top{k}": "greater" for k in metrics["topk"]}
    quantities["loss"] = "less"
    for suffix in average_suffixes(metrics["average"]).values():
        quantities |= {f"{name}{suffix}": "greater" for name in ("precision", "recall", "f1")}
    for name, node in (metrics.get("extra") or {}).items():
        if name in quantities:
            raise ConfigError(f"metrics.extra.{name}: there is a built-in metric of this name; choose another")
        if node is not None:
            quantities[name] = direction(str(node.get("_target_")))
    hooks = config.get("hooks") or {}
    phase = "test" if config["mode"] == "test" else "val"
    rules = {f"{phase}/{name}": rule for name, rule in quantities.items()}
    ema = hooks.get("ema") or {}
    if phase == "val" and ema.get("evaluate_on_ema") and ema.get("evaluate_on_origin"):
        rules |= {f"{name}_origin": rule for name, rule in rules.items()}
    own = metrics["monitor"] == "auto" and not metrics.get("rule")
    watcher = (own and hooks.get("early_stop")) or metrics
    first = _find(watcher.get("monitor", "auto"), rules) or _find(metrics["monitor"], rules)
    if first is None:
        return rules
    return {first: None} | rules | {first: rules[first] or watcher.get("rule")}


def resolve(name: str, rules: Mapping[str, str | None], key: str = "metrics.monitor") -> str:
    """The full name of a metric: `auto` is the first of `rules`, `top1` is `val/top1` (`test/top1` in a test).

    Raises:
        ConfigError: there is no such metric; `key` says who asked.
    """
    found = _find(name, rules)
    if found is None:
        short = {full.partition("/")[2]: full for full in rules}
        word = name.rpartition("/")[2]
        hint = did_you_mean("top1" if word.lower() in ("acc", "accuracy") else word, short)
        raise ConfigError(f"{key}: there is no metric '{name}'{hint} (metrics: auto, {', '.join(rules)})")
    return found


def resolve_rule(
    name: str, rules: Mapping[str, str | None], given: str | None = None, key: str = "metrics.rule"
) -> str:
    """`greater` or `less`: the metric's own, else the `given` one.

    Raises:
        ConfigError: the two disagree, or nothing is given and the metric's direction is not known; `key` is where to
            give it.
    """
    rule = rules[name] or given
    if given and given != rule:
        raise ConfigError(f"{key}={given} would keep the worst: of {name} the {rule} is better; leave {key} out")
    if rule is None:
        raise ConfigError(f"{key}: it is not known which direction of {name} is better; set it to greater or less")
    return rule


def average_suffixes(averages: list[str]) -> dict[str, str]:
    """Average -> what the names of its precision, recall and F1 end in; the first has the plain names."""
    return {average: f"_{average}" if position else "" for position, average in enumerate(dict.fromkeys(averages))}


def direction(target: str) -> str | None:
    """`greater` or `less` for a class of torchmetrics by its dotted name; None for any other."""
    if not target.startswith("torchmetrics."):
        return None
    family = re.sub(r"^(Binary|Multiclass|Multilabel)", "", target.rpartition(".")[2])
    return "greater" if family in GREATER else "less" if family in LESS else None


def _find(name: str, rules: Mapping[str, str | None]) -> str | None:
    if name == "auto":
        return next(iter(rules), None)
    phase = next(iter(rules), "val/").partition("/")[0]
    full = f"{phase}/{name.removeprefix('val/').removeprefix('test/')}"
    return full if full in rules else None
