"""The hook points, and the binding of hooks to them.

In the order of one run (see app/engine/loop.py):

    attach(run)              objects exist; nothing is restored yet
    epoch_start(run)         before the first batch of an epoch, also after a resume into it
      step_end(run, step)    after the optimizer step and the counters
      evaluating(run)        a context around every evaluation
        eval_end(run, metrics)   inside it, metrics reduced
      epoch_end(run)         the epoch rolled over, evaluation done
      commit(run)            the last thing of every iteration: only here is anything saved or stopped
    finish(run, error)       always

Hooks run on every rank; writers ask `run.world.is_main`; a decision that depends on one rank goes through
`run.world.agree`. Never read a device tensor off your own interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from app.config.schema.hooks import PRIORITIES
from app.core.state import Run, StepInfo

POINTS = ("attach", "epoch_start", "step_end", "evaluating", "eval_end", "epoch_end", "commit", "finish")


class Hook:
    """Something that happens beside training. Override the points you need; the others cost nothing."""

    priority: int | str = 50
    """Set from the config; lower runs first."""
    in_test: bool = True
    """False: left out with mode=test."""
    in_check: bool = True
    """False: left out with check=true."""
    decides_on_nonfinite: bool = False
    """True: this hook alone says what a NaN means; without such a hook the logger stops the run."""

    @property
    def evaluated_weights(self) -> str | None:
        """The entry of `state_dict` with weights that are evaluated instead of the model's; None: there are none."""
        return None

    def attach(self, run: Run) -> None:
        """Allocate state; the model is built, nothing is restored yet."""

    def epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch, also when a resume enters it in the middle."""

    def step_end(self, run: Run, step: StepInfo) -> None:
        """After the optimizer step and the counters."""

    def evaluating(self, run: Run) -> AbstractContextManager[None]:
        """A context around every evaluation."""
        return nullcontext()

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Inside that context, with `phase/quantity` metrics; may add to them."""

    def epoch_end(self, run: Run) -> None:
        """The epoch is over, its evaluation done."""

    def commit(self, run: Run) -> None:
        """The last thing of every iteration: all due work has happened, the state is consistent."""

    def finish(self, run: Run, error: BaseException | None) -> None:
        """Always, also after an error: flush, close, put back."""

    def before_save(self, run: Run) -> None:
        """Before the state of `run` is saved, at whichever moment: bring `state_dict` up to date, look at what is due.

        May call `run.request_rollback`; then nothing is saved.
        """

    def rolling_back(self, run: Run) -> AbstractContextManager[None]:
        """A context around a return to the newest checkpoint: finish what is under way, keep what stays true."""
        return nullcontext()

    def newest_checkpoint(self) -> Path | None:
        """The file of the newest checkpoint; None: this hook keeps none."""
        return None

    def best_checkpoint(self, metric: str, step: int | None = None) -> Path | None:
        """The file of the best checkpoint by `metric`, if it is of `step` (where given); None: this hook keeps none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: tensors, numbers, strings, lists and dicts only. Saved under the hook's name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`'s result."""

    def restored(self, run: Run, source: Path) -> None:
        """After everything was restored from the checkpoint `source`, which may lie in another run's folder."""


def priority_of(hook: Hook) -> int:
    """The hook's priority as a number."""
    return PRIORITIES[hook.priority] if isinstance(hook.priority, str) else hook.priority


def bind(hooks: Mapping[str, Hook]) -> dict[str, list[tuple[str, Callable[..., Any]]]]:
    """For each point, the (name, bound method) of the hooks that override it, in call order; ties as listed."""
    ordered = sorted(hooks.items(), key=lambda item: priority_of(item[1]))
    return {
        point: [
            (name, getattr(hook, point))
            for name, hook in ordered
            if getattr(type(hook), point) is not getattr(Hook, point)
        ]
        for point in POINTS
    }


def call(point: str, hooks: Sequence[tuple[str, Callable[..., Any]]], *args: Any) -> None:
    """Calls the bound hooks in order; an error gets a note that names hook and point, and keeps type and traceback."""
    for name, method in hooks:
        try:
            method(*args)
        except Exception as error:
            error.add_note(f"raised by hooks.{name} at {point}")
            raise
