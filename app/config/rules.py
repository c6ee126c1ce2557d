"""Contradictions between keys, one rule a function: (resolved config, keys given on the command line) -> problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.config import data_rules, hook_rules
from app.config.suggest import unknown_key
from app.suggest import did_you_mean

Config = Mapping[str, Any]
Rule = Callable[[Config, Collection[str]], Iterator[str]]


def name(config: Config, given: Collection[str]) -> Iterator[str]:
    """`name` is one folder below output_root."""
    if not re.fullmatch(r"[\w.+-]*[\w+][\w.+-]*", config["name"]):
        yield f"name must be letters, digits and any of . _ + -, since it names a folder; got {config['name']!r}"


def length(config: Config, given: Collection[str]) -> Iterator[str]:
    """Exactly the length that fits the clock."""
    train = config["train"]
    wanted, other = ("max_epochs", "max_iters") if train["by_epoch"] else ("max_iters", "max_epochs")
    clock = f"train.by_epoch={str(train['by_epoch']).lower()}"
    if train[wanted] is None:
        yield f"{clock} needs train.{wanted}=…, the length of the run"
    if train[other] is not None and (train["by_epoch"] or f"train.{other}" in given):
        opposite = str(not train["by_epoch"]).lower()
        yield f"train.{other}={train[other]} contradicts {clock}; give train.{wanted}, or train.by_epoch={opposite}"
    warmup = config["schedule"].get("warmup", 0)
    if train[wanted] is not None and isinstance(warmup, (int, float)) and warmup > train[wanted]:
        yield f"schedule.warmup={warmup:g} is longer than the run (train.{wanted}={train[wanted]})"


def start(config: Config, given: Collection[str]) -> Iterator[str]:
    """`mode`, `load_from` and `resume` fit together."""
    load_from, resume = config["load_from"], config["resume"]
    path = resume if isinstance(resume, str) and resume not in ("auto", "true", "false") else None
    if config["mode"] == "test" and load_from is None and resume is False:
        yield "mode=test needs a checkpoint: load_from=…/checkpoints/best.pth, or resume=true for the newest run"
    if path is not None and load_from is not None:
        both = f"resume={path} and load_from={load_from}"
        yield f"{both} both name a checkpoint; give one (resume=true load_from=… resumes it)"
    if path is not None and "/" not in path and not Path(path).exists():
        near = did_you_mean("true" if path in ("latest", "last", "newest") else path, ("auto", "true", "false"))
        yield f"resume must be false, true, auto or a checkpoint's path; there is no file {path!r}{near}"
    init = (config["model"].get("init") or {}) if isinstance(config["model"], dict) else {}
    if init.get("prefix") and not init.get("checkpoint"):
        yield f"model.init.prefix={init['prefix']} has no effect without model.init.checkpoint=…"
    for key, address in (("load_from", load_from), ("resume", path), ("model.init.checkpoint", init.get("checkpoint"))):
        yield from _address(key, address)


def _address(key: str, address: Any) -> Iterator[str]:
    if not isinstance(address, str):
        return
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", address)
    if scheme and scheme[1].lower() not in ("http", "https"):
        yield f"{key}: {scheme[1]}:// is not supported; a path or an http(s):// address is"
    digest = re.search(r"#(\w+)=(.*)$", address)
    if digest and (digest[1] != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest[2])):
        yield f"{key}: after # comes sha256= and 64 hexadecimal digits, got {digest[0]!r}"


def logged_values(config: Config, given: Collection[str]) -> Iterator[str]:
    """Entries of logging.custom."""
    sources = ("loss", "top1", "grad_norm", "lr", "time", "data_time")
    methods = ("mean", "min", "max", "last")
    for index, entry in enumerate(config["logging"]["custom"]):
        key = f"logging.custom[{index}]"
        if not isinstance(entry, dict):
            yield f"{key} must be a mapping of source, method, window, name; got {entry!r}"
            continue
        for field in entry:
            known = ("source", "method", "window", "name")
            if field not in known:
                yield unknown_key(f"{key}.", str(field), known)
        for field, choices in (("source", sources), ("method", methods)):
            value = entry.get(field)
            if value not in choices and (field == "source" or value is not None):
                near = did_you_mean(str(value), choices)
                yield f"{key}.{field} must be one of {', '.join(choices)}; got {value!r}{near}"
        window = entry.get("window")
        if window not in (None, "epoch", "global") and not (type(window) is int and window >= 1):
            yield f"{key}.window must be a number of iterations >= 1, epoch or global; got {window!r}"
        if entry.get("source") == "grad_norm" and config["train"]["clip_norm"] is None:
            yield f"{key}: grad_norm is known only with train.clip_norm=…"


def multipliers(config: Config, given: Collection[str]) -> Iterator[str]:
    """Entries of optim.multipliers."""
    for pattern, node in (config["optim"].get("multipliers") or {}).items():
        key = f"optim.multipliers.{pattern}"
        if not isinstance(node, dict):
            yield f"{key} must be a mapping {{lr: factor, decay: factor}}, got {node!r}"
            continue
        for field, factor in node.items():
            if field not in ("lr", "decay"):
                yield unknown_key(f"{key}.", str(field), ("lr", "decay"))
            elif isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
                yield f"{key}.{field} must be >= 0, got {factor!r}"


def devices(config: Config, given: Collection[str]) -> Iterator[str]:
    """`env.device` is a device's name, and the backend can serve it."""
    env = config["env"]
    device = env["device"]
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        near = did_you_mean(device.replace("gpu", "cuda"), ("auto", "cpu", "cuda", "mps"))
        yield f"env.device must be auto, cpu, cuda, cuda:N or mps; got {device!r}{near}"
    if device == "cpu" and env["dist"]["backend"] == "nccl":
        yield "env.dist.backend=nccl needs GPUs, and env.device=cpu asks for none; use gloo or auto"


RULES: tuple[Rule, ...] = (
    name,
    length,
    start,
    logged_values,
    multipliers,
    devices,
    data_rules.source,
    data_rules.augmentation,
    hook_rules.priorities,
    hook_rules.hook_pairs,
    hook_rules.checkpoint,
    hook_rules.metric_names,
)
