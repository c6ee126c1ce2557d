"""From a sweeper's overrides to jobs: the folder chosen, every config composed and checked before any job starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from app.errors import ConfigError
from app.launch import sweep
from app.launch.job import DONE_STATE, Job, finished, read_records
from app.launch.point import identity, identity_keys, parse, swept
from app.runs.folder import has_checkpoint

CONTINUE = (True, "true", "auto")
"""Values of `resume` that a sweep takes for itself; a path is passed on to its jobs."""


class RememberingLoader:
    """Hydra's config loader, composing each point once: a sweeper composes all of them first, to see if they can be."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """What the loader composes; handed out twice at most, since its user may change it."""
        key = tuple(sweep_overrides)
        if key in self._composed:
            return self._composed.pop(key)
        self._composed[key] = self._loader.load_sweep_config(master_config, sweep_overrides)
        return self._composed[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def place(context: HydraContext, master: DictConfig, at_work: Callable[[Path], bool]) -> list[str]:
    """Sets `hydra.sweep.dir` of a sweep's own config, which says neither the experiment's name nor `resume`.

    Those may come from `experiment=…`, so the sweep's first point is composed to learn them. A folder that is `at_work`
    already is continued even without `resume`: nothing is to be submitted twice. Returns the keys of the command line.
    """
    loader = context.config_loader
    context.config_loader = cast(ConfigLoader, RememberingLoader(loader))
    command_line = list(master.hydra.overrides.task)
    explicit = any(parse(item).key == "hydra.sweep.dir" for item in master.hydra.overrides.hydra)
    keys = _keys(master, command_line)
    first = loader.load_sweep_config(master, _first_point(command_line))
    resume = first.get("resume") in CONTINUE
    root = Path(first.output_root, first.name)
    folder = Path(master.hydra.sweep.dir) if explicit else sweep.choose(root, keys, True)
    if not resume and at_work(folder):
        print(f"continuing {folder}: jobs of this sweep are still in the queue")
        resume = True
    elif not resume and not explicit:
        folder = sweep.choose(root, keys, False)
    sweep.make_folder(folder, may_continue=resume or not explicit)
    with read_write(master), read_write(master.hydra), open_dict(master.hydra):
        master.hydra.sweep.dir = str(folder)
    return keys


def compose(
    loader: ConfigLoader, master: DictConfig, task: str, points: Sequence[Sequence[str]], first_number: int
) -> list[Job]:
    """One job per point, with its folder and composed config; those that are done already are marked so.

    Raises:
        ConfigError: with every distinct problem of all points.
    """
    from app.config.check import check

    command_line = list(master.hydra.overrides.task)
    folder = Path(master.hydra.sweep.dir)
    axes = [swept(overrides, command_line) for overrides in points]
    identities = [identity(overrides, chosen) for overrides, chosen in zip(points, axes, strict=True)]
    folders = sweep.assign_folders(folder, list(zip(axes, identities, strict=True)))
    records = read_records(folder)
    jobs: list[Job] = []
    problems: dict[str, str] = {}
    for index, overrides in enumerate(points):
        config = loader.load_sweep_config(master, list(overrides))
        for problem in check(without_hydra(config), overrides):
            problems.setdefault(problem, folders[index].name)
        job = Job(first_number + index, list(overrides), axes[index], identities[index], folders[index], config, task)
        _settle(job, master, records.get(job.name))
        jobs.append(job)
    if problems:
        lines = [f"{problem} (in {name})" if len(points) > 1 else problem for problem, name in problems.items()]
        raise ConfigError("\n".join(lines))
    return _without_repetitions(jobs)


def without_hydra(config: DictConfig) -> DictConfig:
    """The config as the task function sees it."""
    task_config = copy.deepcopy(config)
    with read_write(task_config), open_dict(task_config):
        del task_config["hydra"]
    return task_config


def _settle(job: Job, master: DictConfig, record: dict[str, Any] | None) -> None:
    """Fixes folder and number in the config, and whether the job is done, goes on, or is new."""
    config = job.config
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = master.hydra.sweep.dir
        config.hydra.sweep.subdir = job.name
        config.hydra.job.id = str(job.number)
        config.hydra.job.num = job.number
        if record or has_checkpoint(job.folder):
            config.resume = "auto"
        elif config.get("resume") in CONTINUE:
            config.resume = False
    if record is None:
        return
    job.launches = int(record.get("launches", 0))
    done = finished(job.folder, job.length)
    if done is not None:
        job.state, job.skipped, job.value = DONE_STATE, True, done.get("best")
        job.seconds = float(record.get("seconds", 0.0))


def _without_repetitions(jobs: list[Job]) -> list[Job]:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.identity in seen:
            raise ConfigError(
                f"{job.folder.name}: the sweep names this point twice; "
                f"points {seen[job.identity].number} and {job.number} have the same settings"
            )
        seen[job.identity] = job
    return jobs


def _keys(master: DictConfig, command_line: Sequence[str]) -> list[str]:
    """What the command line says about the experiment: the keys of everything that makes a point."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    return sorted({*identity_keys(command_line), *map(str, params)})


def _first_point(command_line: Sequence[str]) -> list[str]:
    """The overrides of the sweep's first point, or without what only its sweeper can choose."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    point = []
    for override in OverridesParser.create().parse_overrides(list(command_line)):
        if not override.is_sweep_override():
            point.append(override.input_line or "")
        elif override.is_discrete_sweep():
            first = next(iter(override.sweep_string_iterator()))
            point.append(f"{override.get_key_element()}={first}")
    return point
