"""From configuration to objects: the only place that instantiates anything, after `app.config.check` has passed it."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from app.config.schema.data import DataConf
from app.config.schema.model import BCEConf, CrossEntropyConf
from app.core.hook import Hook
from app.core.parallel import parallel, synchronised
from app.core.ranks import World
from app.core.rng import seed_building
from app.core.speed import compile_forward, set_layout
from app.core.speed import describe as describe_speed
from app.core.state import DataFeed, Run, Schedule, TrainState
from app.data.classes import in_order_of
from app.data.feed import Feed
from app.data.source import read_splits
from app.errors import ConfigError, RunError
from app.hooks.monitor import Monitor
from app.metrics.losses import Loss, Losses, pair
from app.metrics.metrics import Metrics
from app.metrics.names import metric_rules, resolve, resolve_rule
from app.optim.optimizer import build_optimizer
from app.runs import provenance
from app.runs.record import plain, values
from app.visualizer.base import Visualizer
from app.visualizer.fanout import build as build_visualizer

logger = logging.getLogger(__name__)

OPEN_BUILDERS = {"timm": {"num_classes", "in_chans"}, "torchvision": {"num_classes"}}
"""What builders of these packages take through their `**kwargs`."""
KINDS: dict[str, str] = {"cross_entropy": CrossEntropyConf._target_, "bce": BCEConf._target_}
"""What version 0.1 called losses, and entries of hooks.switch_recipe still do."""
FEED_KEYS = frozenset(DataConf.__dataclass_fields__) - {"_target_"}


def make(node: Mapping[str, Any], **extra: Any) -> Any:
    """The object of `node["_target_"]`; `extra` and the node's other keys are its arguments, plain lists and dicts.

    Raises:
        RunError: the one that the constructor raised.
    """
    try:
        made = instantiate(OmegaConf.create(dict(node)), _convert_="all", **extra)
    except InstantiationException as error:
        if isinstance(error.__cause__, RunError):
            raise error.__cause__ from None
        raise
    # Hydra's partial checks its policy again at every call, 150 µs; functools' own does not.
    return functools.partial(made.func, *made.args, **made.keywords) if isinstance(made, functools.partial) else made


def build_run(
    cfg: DictConfig, folder: Path, world: World, seed: int, *, with_init: bool, classes: Sequence[str] | None = None
) -> Run:
    """All objects of a run, seeded by `seed`; pretrained weights are put in only `with_init`.

    `classes` are those of the checkpoint whose weights will be used: labels follow their order.

    Raises:
        ConfigError, DataError: what only shows when the objects are made.
    """
    data = build_data(cfg, world, seed, classes)
    seed_building(seed)
    model = synchronised(build_model(cfg, data, with_init), world, cfg.env.dist.sync_bn).to(world.device)
    if data.smallest_batch == 1 and cfg.mode == "train":
        check_single_sample(model, data, world.device)
    amp = amp_mode(cfg.train.amp)
    set_layout(model, cfg.env.channels_last, world.device, amp)
    forward = parallel(model, compile_forward(model, cfg.env.compile), world, cfg.env.dist)
    optimizer = build_optimizer(model, values(cfg.optim), global_batch=cfg.data.batch_size * cfg.train.accumulate)
    if cfg.mode == "train":  # where the training images are held is only known once they are read
        logger.info(describe_speed(model, optimizer, images=data.placement, compiled=cfg.env.compile, amp=amp))
    scaler = torch.amp.GradScaler(world.device.type) if amp == "fp16" else None
    phase = "test" if cfg.mode == "test" else "val"
    by_epoch = cfg.train.by_epoch
    length = cfg.train.max_epochs if by_epoch else cfg.train.max_iters
    config = plain(cfg)
    monitored = metric_rules(config)
    loss = build_losses(values(cfg.loss), data, world.device)
    if cfg.loss.get("kind"):
        logger.warning("loss.kind=%s is now chosen by loss=%s", cfg.loss.kind, cfg.loss.kind)

    def make_loss(settings: Mapping[str, Any]) -> Loss:
        return build_losses(settings, data, world.device).mean

    run = Run(
        config=config,
        folder=folder,
        world=world,
        state=TrainState(model=model, forward=forward, optimizer=optimizer, scaler=scaler),
        data=data,
        metrics=build_metrics(cfg, data, loss.each),
        schedule=build_schedule(cfg, data, monitored, by_epoch, length),
        visualizer=build_visualizers(cfg, folder, world),
        loss=loss.mean,
        make_loss=make_loss,
        monitored=monitored,
        seed=seed,
        rank_seed=seed + world.rank if cfg.randomness.diff_rank_seed else seed,
        by_epoch=by_epoch,
        length=length,
        origin={"versions": provenance.versions(), "git_commit": provenance.git_state()[0]},
        phase=phase,
        tta=cfg.tta is not None,
    )
    run.hooks = {"monitor": Monitor(), **build_hooks(cfg)}
    return run


def build_data(cfg: DictConfig, world: World, seed: int, classes: Sequence[str] | None = None) -> Feed:
    """The data set, read by its target from the keys that are its own, and fed as the common keys say.

    Its classes come in the order of `classes`, a checkpoint's, where the names are the same.
    """
    settings = values(cfg.data)
    accepted = parameters_of(cfg.data._target_)
    own = {key: value for key, value in settings.items() if key not in FEED_KEYS or key in accepted}
    splits = read_splits(functools.partial(make, own), accepted)
    if classes is not None:
        splits = in_order_of(splits, classes, partial=cfg.mode == "test")
    return Feed(
        splits,
        {key: settings[key] for key in FEED_KEYS if key in settings},
        world=world,
        seed=seed,
        accumulate=cfg.train.accumulate,
        start_method=cfg.env.mp.start_method,
        make=make,
    )


def parameters_of(target: str) -> set[str]:
    """The names of the parameters that a callable is known to take, those of its `**kwargs` included."""
    parameters = inspect.signature(get_method(target)).parameters.values()
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    known = OPEN_BUILDERS.get(target.partition(".")[0], set()) if is_open else set()
    return {parameter.name for parameter in parameters} | known


def build_model(cfg: DictConfig, data: DataFeed, with_init: bool) -> nn.Module:
    """The model; what its config leaves open and its constructor takes (num_classes, …) comes from the data set.

    `in_channels` is `in_chans` to a builder that calls it so, as timm's do.
    """
    config = values(cfg.model)
    init = config.pop("init", None) or {}
    known = {"num_classes": len(data.classes), "in_channels": data.channels, "image_size": data.image_size}
    accepted = parameters_of(config["_target_"])
    if "in_chans" in accepted and "in_channels" not in accepted:
        known["in_chans"] = known.pop("in_channels")
        given = config.pop("in_channels", None)
        if config.get("in_chans") is None:
            config["in_chans"] = given
    for key, value in known.items():
        if config.get(key) is None and key in accepted:
            config[key] = value
    own = {key: value for key, value in config.items() if key in accepted or key not in known or value is not None}
    model = make(own)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={config['_target_']} made a {type(model).__name__}, not a torch.nn.Module")
    if with_init and init.get("checkpoint"):
        from app.models.pretrained import load_pretrained

        load_pretrained(model, init["checkpoint"], init.get("prefix"), data.classes)
    return model


def check_single_sample(model: nn.Module, data: DataFeed, device: torch.device) -> None:
    """Raises ConfigError when an epoch ends in a batch of one image and the model's batch norm cannot train on one."""
    image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
    try:
        with torch.no_grad():
            copy.deepcopy(model).train()(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "the last batch of an epoch has 1 sample, and batch norm needs more: "
            "set data.drop_last=true or another data.batch_size"
        ) from error


def build_losses(settings: Mapping[str, Any], data: DataFeed, device: torch.device) -> Losses:
    """The loss of a section of the configuration, as a mean and per sample.

    Raises:
        ConfigError: it gives neither, does not fit the data, or would have to be trained itself.
    """
    config = {name: value for name, value in settings.items() if name != "kind"}
    if settings.get("kind"):
        smoothing = settings.get("label_smoothing", 0.0)
        config = {"_target_": KINDS[settings["kind"]], "label_smoothing": smoothing}
    target = config["_target_"]
    if data.multi_label and target == CrossEntropyConf._target_:
        raise ConfigError("loss=cross_entropy is for one class an image; choose loss=bce for multi-label data")
    accepted, classes = parameters_of(target), len(data.classes)
    if "num_classes" in accepted and config.get("num_classes") is None:
        config["num_classes"] = classes
    made = [make(config | ({"reduction": each} if "reduction" in accepted else {})) for each in ("mean", "none")]
    for loss in made:
        if not callable(loss):
            raise ConfigError(f"loss._target_={target} made a {type(loss).__name__}, which cannot be called")
        if isinstance(loss, nn.Module):
            if any(True for _ in loss.parameters()):
                raise ConfigError(f"loss._target_={target} has parameters, and nothing trains those of a loss")
            loss.to(device)
    losses = pair(*made, num_classes=classes, multi_label=data.multi_label, device=device)
    if not losses.per_sample:
        logger.warning("loss._target_=%s gives no value per sample: evaluations average those of batches", target)
    return losses


def build_metrics(cfg: DictConfig, data: DataFeed, loss: Loss) -> Metrics:
    """The metrics of spec section 10; more of them from `metrics.extra`."""
    settings = values(cfg.metrics)
    classes = list(data.classes)
    known = {"num_classes": len(classes), "num_labels": len(classes)}
    extra = {}
    for name, node in (settings.pop("extra") or {}).items():
        if node is not None:
            accepted = parameters_of(node["_target_"])
            extra[name] = make({**{key: value for key, value in known.items() if key in accepted}, **node})
    return Metrics(settings, classes, multi_label=data.multi_label, loss=loss, extra=extra)


def build_schedule(
    cfg: DictConfig, data: DataFeed, monitored: Mapping[str, str | None], by_epoch: bool, length: int
) -> Schedule:
    """The learning-rate factor as a function of the step; lengths in its config are epochs or iterations."""
    config = values(cfg.schedule)
    if "monitor" in config:
        config["monitor"] = resolve(config["monitor"], monitored, "schedule.monitor")
        config["rule"] = resolve_rule(config["monitor"], monitored, config["rule"], "schedule.rule")
    if "scheduler" in config:
        config["scheduler"] = {**config["scheduler"], "_partial_": True}
    accepted = parameters_of(config["_target_"])
    for name in {"warmup", "warmup_factor"} - accepted:  # one's own schedule may have no warm-up
        config.pop(name, None)
    steps_per_unit = data.steps_per_epoch if by_epoch else 1
    schedule: Schedule = make(config, total_steps=length * steps_per_unit, steps_per_unit=steps_per_unit)
    return schedule


def build_visualizers(cfg: DictConfig, folder: Path, world: World) -> Visualizer:
    """The fan-out over the configured backends, on the main rank; nothing elsewhere."""
    backends = {}
    sweep = folder.parent.name if folder.parent.name.startswith("sweep_") else None
    place = {"folder": folder / "vis_data", "run_name": folder.name, "experiment": cfg.name, "group": sweep}
    for name, node in cfg.visualizer.items() if world.is_main else ():
        if node is not None:
            given = {key: value for key, value in values(node).items() if value is not None or key not in place}
            backends[str(name)] = make(given, **{key: value for key, value in place.items() if key not in given})
    return build_visualizer(backends, world)


def build_hooks(cfg: DictConfig) -> dict[str, Hook]:
    """The hooks by name; null ones are left out."""
    hooks: dict[str, Hook] = {}
    for name, node in cfg.hooks.items():
        if node is None:
            continue
        config = values(node)
        priority = config.pop("priority", None)
        hook = make(config)
        if not isinstance(hook, Hook):
            raise ConfigError(f"hooks.{name}._target_ made a {type(hook).__name__}, not an app.core.hook.Hook")
        if priority is not None:
            hook.priority = priority
        hooks[str(name)] = hook
    return hooks


def amp_mode(amp: bool | str) -> str | None:
    """`bf16`, `fp16`, or None for off."""
    return None if amp in (False, "off") else str(amp)
