"""The command line: composes the configuration, checks it, and starts the job. Imports no torch.

Hydra's own `main` decorator prints an error and leaves; so its parts are called here in the same order, and what they
raise becomes one message with an exit code.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from app.config import command_line
from app.config.check import require, resolved
from app.config.command_line import CONF, CommandLine
from app.config.composition import compose, explained, replaced
from app.config.inputs import require_inputs
from app.config.schema import register
from app.config.targets import hydra_refusals
from app.config.wording import listed
from app.core.rank import adopt, find_rank
from app.errors import BUG, ConfigError, RunError, unwritable
from app.process import unwound_by_signals
from app.runs import folder

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def entry() -> int | str | None:
    """The command line of `python -m app`, with its errors as one message each; gives back what `sys.exit` takes."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        return code
    except RunError as error:
        if find_rank().rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as left:
        return left.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("this is a bug in the program or in a class of yours", file=sys.stderr)
        return BUG


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments ask for.

    Raises:
        RunError: with a message for a person and an exit code.
    """
    line = command_line.split(arguments)
    if line.has("--help", "-h"):
        from app.config.help import show_help

        return show_help(line.settings)
    if line.has("--shell-completion", "-sc"):
        from app.config.completion import is_query, script

        if not is_query(line.settings):
            print(script(line.settings))
            return 0
    elif not line.has("--hydra-help", "--version"):
        line.settings = command_line.checked_settings(line.settings)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own classes; `python -m` has it there, a console script has not
    with session(line) as (hydra, options):
        return dispatch(hydra, options, line)


@contextmanager
def session(line: CommandLine) -> Iterator[tuple[Hydra, Any]]:
    """Hydra with our schema, config folder and launchers, and the parsed options."""
    from app.launch.plugins import register as register_launchers

    version.setbase("1.3")
    register()
    folder.register_resolver()
    options = get_args_parser().parse_args([*line.flags, *line.settings])
    search_path = create_config_search_path(options.config_path or str(CONF))
    if options.config_dir is not None:
        own = Path(options.config_dir).resolve()
        if not own.is_dir():
            raise ConfigError(f"--config-dir {options.config_dir}: there is no folder {own}")
        search_path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="options"))
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("app", search_path)
    register_launchers()
    try:
        yield hydra, options
    finally:
        GlobalHydra.instance().clear()


def dispatch(hydra: Hydra, options: Any, line: CommandLine) -> int:
    """Runs the one command that the flags name; without any: a job."""
    name = options.config_name or "config"
    if options.shell_completion:
        from app.config.completion import query

        query(hydra, name)
    elif options.hydra_help:
        hydra.hydra_help(config_name=name, args_parser=get_args_parser(), args=options)
    elif options.info is not None:
        compose(hydra, name, line.settings, RunMode.RUN)
        hydra.show_info(options.info, config_name=name, overrides=line.settings)
    elif options.cfg is not None:
        show_config(hydra, options, name, line.settings)
    else:
        run(hydra, name, line)
    return 0


def show_config(hydra: Hydra, options: Any, name: str, settings: list[str]) -> None:
    """`--cfg job|hydra|all [--resolve] [--package P]`; no folder is made for it."""
    OmegaConf.register_new_resolver("run_folder", lambda root, name, *_: f"{root}/{name}/…", replace=True)
    with explained(hydra, settings):
        hydra.show_cfg(name, settings, options.cfg, options.package, options.resolve)


def run(hydra: Hydra, name: str, line: CommandLine) -> None:
    """Composes and checks; then one job, or with --multirun a sweep.

    Raises:
        RunError: also what a job of a sweep failed with.
    """
    settings = line.settings
    multirun = line.has("--multirun", "-m") or asks_for_multirun(hydra, name, settings)
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    settings = [*(word for word in settings if not word.startswith("hydra.mode=")), f"hydra.mode={mode.name}"]
    config = compose(hydra, name, settings, mode)
    for note in replaced(hydra, name, settings, mode):
        print(f"warning: {note}", file=sys.stderr)
    rank = adopt(str(OmegaConf.select(config, "env.dist.launcher")))
    if multirun:
        if rank.size > 1:
            raise ConfigError(
                f"--multirun starts the processes of its jobs itself, but this is one of {rank.size} started together; "
                "start it once, without srun or torchrun"
            )
        raw: Any = OmegaConf.to_container(config)
        refused = list(hydra_refusals(raw, settings))
        if refused:
            raise ConfigError(listed(refused))
    else:
        require(config, settings)
        chosen = config.hydra.runtime.choices.get("hydra/launcher")
        if chosen != "local" or any(word.startswith("hydra/launcher=") for word in settings):
            print("warning: hydra/launcher has no effect without --multirun; running here", file=sys.stderr)
        require_inputs(resolved(config))
        settings = command_line.for_rank(settings, rank.rank)
    if multirun:
        gc.enable()
    with explained(hydra, settings):
        if multirun:
            hydra.multirun(config_name=name, task_function=task, overrides=settings)
            return
        with unwound_by_signals(), folder.removed_if_unused():
            hydra.run(config_name=name, task_function=task, overrides=settings)


def asks_for_multirun(hydra: Hydra, name: str, settings: list[str]) -> bool:
    """True when `hydra.mode` is MULTIRUN, on the command line or in a file of the user's."""
    if "hydra.mode=MULTIRUN" in settings:
        return True
    if name == "config" and not any(word.startswith("experiment=") for word in settings):
        return False
    try:
        config = hydra.compose_config(name, settings, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except Exception:
        return False  # the composition that follows says what is wrong
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def task(config: DictConfig) -> float | None:
    """One job in the folder that Hydra has made: what Hydra and its launchers call.

    Outside a sweep it leaves with the exit code of what went wrong; in a sweep it raises, and the other jobs go on.
    """
    own = HydraConfig.get()
    in_sweep = own.mode == RunMode.MULTIRUN
    try:
        if in_sweep:
            require(config, list(own.overrides.task))
            require_inputs(resolved(config))
        from app.job import Stopped, run_job

        if not gc.isenabled():  # see app/__main__.py; what was imported until now stays, and is not searched again
            gc.freeze()
            gc.enable()
        try:
            return run_job(config)
        except Stopped as stopped:
            if in_sweep:
                raise
            raise SystemExit(stopped.exit_code) from None
    except RunError as error:
        logger.error("error: %s", error, exc_info=os.environ.get("HYDRA_FULL_ERROR") == "1")
        if in_sweep:
            raise
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        if (problem := unwritable(error, own.runtime.output_dir)) is not None:
            logger.error("error: %s", problem)
            error = problem
        if in_sweep:
            raise error
        if problem is not None:
            raise SystemExit(problem.exit_code) from None
        logger.exception("this is a bug in the program or in a class of yours")
        raise SystemExit(BUG) from None
