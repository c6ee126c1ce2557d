"""Contradictions between the keys of hooks, and the metrics that are watched (see app/config/rules.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from app.config.schema.hooks import HOOKS, PRIORITIES, CheckpointConf
from app.config.schema.runtime import BACKENDS
from app.errors import ConfigError
from app.metrics.names import metric_rules, resolve, resolve_rule
from app.suggest import did_you_mean

Config = Mapping[str, Any]


def metric_names(config: Config, given: Collection[str]) -> Iterator[str]:
    """Every watched metric exists, and its better direction is known."""
    hooks = config["hooks"]
    watched: list[tuple[str, Any, Any]] = [("metrics", config["metrics"]["monitor"], config["metrics"].get("rule"))]
    for key, node in (("hooks.early_stop", hooks.get("early_stop")), ("schedule", config["schedule"])):
        if node and "monitor" in node:
            watched.append((key, node["monitor"], node.get("rule")))
    saver = hooks.get("checkpoint") or {}
    names, rule = _listed(saver.get("save_best")), _listed(saver.get("rule"))
    rules = [*rule, *[None] * len(names)] if isinstance(saver.get("rule"), list) else [saver.get("rule")] * len(names)
    watched += [("hooks.checkpoint", metric, each) for metric, each in zip(names, rules, strict=False)]
    try:
        known = metric_rules(config)
    except ConfigError as error:
        yield str(error)
        return
    for key, metric, each in watched:
        field = f"{key}.save_best" if key == "hooks.checkpoint" else f"{key}.monitor"
        if not isinstance(metric, str):
            yield f"{field} must be a metric's name, got {metric!r}"
            continue
        try:
            resolve_rule(resolve(metric, known, field), known, each, f"{key}.rule")
        except ConfigError as error:
            yield str(error)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def checkpoint(config: Config, given: Collection[str]) -> Iterator[str]:
    """Keys of hooks.checkpoint."""
    node = config["hooks"].get("checkpoint")
    if isinstance(node, dict) and "interval" in node:
        names = {each.name for each in fields(CheckpointConf)}
        yield from CheckpointConf(**{key: value for key, value in node.items() if key in names}).problems()


def named_nodes(config: Config) -> Iterator[str]:
    """Each hook and backend is a mapping with a class, or null; the other rules rely on it."""
    yield from _named(config["hooks"], "hooks", HOOKS)
    yield from _named(config["visualizer"], "visualizer", BACKENDS)


def priorities(config: Config, given: Collection[str]) -> Iterator[str]:
    """Each hook has a place in the call order."""
    for hook, node in config["hooks"].items():
        priority = node.get("priority") if node else None
        if isinstance(priority, str) and priority not in PRIORITIES:
            near = did_you_mean(priority, PRIORITIES)
            yield f"hooks.{hook}.priority must be 0 to 100 or one of {', '.join(PRIORITIES)}; got {priority!r}{near}"
        elif isinstance(priority, (int, float)) and not 0 <= priority <= 100:
            yield f"hooks.{hook}.priority must be in [0, 100], got {priority}"


def _named(nodes: Mapping[str, Any], group: str, known: Collection[str]) -> Iterator[str]:
    for entry, node in nodes.items():
        if node is None:
            continue
        if not isinstance(node, Mapping):
            yield f"{group}.{entry} must be a mapping of its keys, or null to leave it out; got {node!r}"
        elif "_target_" not in node:
            if entry in known:
                yield f"{group}.{entry} is not selected; add `+{group}={entry}`"
            else:
                near = did_you_mean(entry, known, f"{group}.")
                own = f"a class of your own needs {group}.{entry}._target_=…"
                yield f"unknown key '{group}.{entry}'{near} ({own}; known: {', '.join(known)})"


def hook_pairs(config: Config, given: Collection[str]) -> Iterator[str]:
    """Keys of single hooks that exclude each other."""
    ema = config["hooks"].get("ema") or {}
    if ema.get("decay") is not None and ("hooks.ema.momentum" in given or ema.get("momentum") != 2e-4):
        both = f"hooks.ema.momentum={ema.get('momentum')} and hooks.ema.decay={ema['decay']}"
        yield f"{both} say the same thing twice; give one (momentum = 1 - decay)"
    if ema.get("begin_epoch") and ema.get("begin_iter"):
        yield "hooks.ema.begin_epoch and hooks.ema.begin_iter are both set; give one"
    if ema.get("evaluate_on_ema") is False and ema.get("evaluate_on_origin") is False:
        yield "hooks.ema.evaluate_on_ema and hooks.ema.evaluate_on_origin are both false: nothing would be validated"
    guard, saver = config["hooks"].get("nan_guard") or {}, config["hooks"].get("checkpoint") or {}
    if guard.get("policy") == "rollback" and (saver.get("interval", -1) == -1 or not saver.get("save_optimizer", True)):
        needed = "hooks.checkpoint with interval >= 1 and save_optimizer=true"
        yield f"hooks.nan_guard.policy=rollback needs checkpoints to go back to: {needed}"
