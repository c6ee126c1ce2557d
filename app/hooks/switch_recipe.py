"""Another augmentation or loss from an epoch on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from app.config.schema.hooks import SwitchRecipeConf
from app.core.hook import Hook
from app.core.state import Run

PARTS = ("augment", "batch_augment", "loss")

logger = logging.getLogger(__name__)


class SwitchRecipe(SwitchRecipeConf, Hook):
    """Applies a schedule of {epoch, augment, batch_augment, loss}.

    An entry changes what it names, from its epoch (0-based) on; null switches an augmentation off. What is in force is
    a function of the epoch alone, so a resumed run has what an uninterrupted one has.

    Raises:
        ConfigError: at attach, an augmentation that does not exist.
    """

    in_test = False

    def attach(self, run: Run) -> None:
        data = run.config["data"]
        self.base = {
            "augment": data.get("augment"),
            "batch_augment": data.get("batch_augment"),
            "loss": run.config["loss"],
        }
        self.current = self.base
        for epoch in [entry["epoch"] for entry in self.schedule] + [-1]:
            self.apply(run, epoch)  # a wrong name is an error now, not then

    def epoch_start(self, run: Run) -> None:
        epoch = run.state.progress.epoch
        for part in self.apply(run, epoch):
            logger.info("from epoch %d: %s=%s", epoch + 1, part, self.current[part])

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        # A resume may begin with the evaluation that an interruption cut off, before any epoch starts.
        progress = run.state.progress
        self.apply(run, progress.epoch if progress.batch else max(progress.epoch - 1, 0))
        yield

    def apply(self, run: Run, epoch: int) -> list[str]:
        """Puts the recipe of `epoch` in force; returns what changed by that."""
        wanted = recipe(self.base, self.schedule, epoch)
        changed = [part for part in PARTS if wanted[part] != self.current[part]]
        if "loss" in changed:
            run.loss = run.make_loss(wanted["loss"])
        if changed and changed != ["loss"]:
            run.data.set_recipe(wanted["augment"], wanted["batch_augment"])
        self.current = wanted
        return changed


def recipe(base: Mapping[str, Any], schedule: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, Any]:
    """What is in force at `epoch`: the base, changed by all entries up to it; a loss entry changes the keys it has."""
    result = dict(base)
    for entry in schedule:
        if entry["epoch"] > epoch:
            break
        for part in PARTS:
            if part in entry:
                result[part] = {**base["loss"], **entry["loss"]} if part == "loss" else entry[part]
    return result
