"""Composing with Hydra, with one message for all that is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig

from app.config.check import check, override_key
from app.config.explain import causes, culprit, explain, is_hydra_error
from app.config.schema import ADDED, GROUPS
from app.config.wording import listed
from app.errors import IO, CannotWrite, ConfigError, RunError, unwritable

MOST_PROBLEMS = 10


def compose(hydra: Hydra, name: str, settings: Sequence[str], mode: RunMode) -> DictConfig:
    """The configuration; when it cannot be composed, all settings that are wrong are found, not only the first.

    Raises:
        ConfigError: with one line for each.
    """
    left, problems = list(settings), []
    while True:
        try:
            config = hydra.compose_config(name, left, mode)
        except Exception as error:
            problems.append(explanation(hydra, error, left))
            wrong = culprit(error, left)
            if wrong is None or len(problems) == MOST_PROBLEMS:
                break
            left.remove(wrong)
            continue
        if not problems:
            return config
        others = check(config, left) if mode is RunMode.RUN else []
        problems += [other for other in others if " is missing" not in other]  # it may be what was left out
        break
    raise ConfigError(listed(problems))


def replaced(hydra: Hydra, name: str, settings: Sequence[str], mode: RunMode) -> Iterator[str]:
    """Note each selection of a file (`override /hooks: [ema]`) that one of the command line takes the place of."""
    typed = {group: word for group in ADDED for word in settings if word.startswith(f"{group}=")}
    if not typed or (name == "config" and not any(word.startswith("experiment=") for word in settings)):
        return

    def chosen(group: str, words: Sequence[str]) -> list[str]:
        found = hydra.config_loader.compute_defaults_list(name, list(words), mode).defaults
        paths = [str(entry.config_path) for entry in found]
        return [path.removeprefix(f"{group}/") for path in paths if path.startswith(f"{group}/")]

    for group, word in typed.items():
        files = chosen(group, [other for other in settings if other != word])
        if lost := [each for each in files if each not in chosen(group, settings)]:
            yield f"{word} replaces {group}=[{','.join(files)}] of a file; to keep {', '.join(lost)} too write +{word}"


def explanation(hydra: Hydra, error: Exception, settings: Sequence[str]) -> str:
    """The message for what Hydra raised; a bug's exception goes on as it is."""
    if not is_hydra_error(error) and culprit(error, settings) is None:
        for word in settings:
            rest = [other for other in settings if other is not word]
            try:
                hydra.compose_config("config", rest, RunMode.RUN)
            except Exception:
                continue
            group = override_key(word)
            if group in GROUPS:
                return f"{group} must be one of its options: {', '.join(GROUPS[group])}; got {word.partition('=')[2]}"
            return f"cannot apply '{word}': {error}"
        raise error
    loader = hydra.config_loader
    folders = [Path(entry.path.removeprefix("file://")) for entry in loader.get_search_path().get_path()]
    return explain(error, settings, lambda group: loader.get_group_options(group, ObjectType.CONFIG), folders)


@contextmanager
def explained(hydra: Hydra, settings: Sequence[str]) -> Iterator[None]:
    """Turns what Hydra raises into a RunError. With HYDRA_FULL_ERROR=1 the traceback stays."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if not is_hydra_error(error) and (problem := unwritable(error)) is not None:
            if problem.exit_code == IO and "hydra.mode=MULTIRUN" not in settings:
                # Hydra itself met the full disk, as it made the folder: nothing has started that could be resumed.
                place = getattr(error, "filename", None) or "the run folder"
                problem = CannotWrite(f"cannot make or write {place}: {getattr(error, 'strerror', error)}")
            raise problem from error
        known = next((cause for cause in causes(error) if isinstance(cause, RunError)), None)
        if known is not None:
            raise known from error
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if not is_hydra_error(error):
            raise  # a bug, whatever the settings are
        raise ConfigError(explanation(hydra, error, settings)) from error
