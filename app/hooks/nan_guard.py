"""Stop, skip or roll back when numbers are no longer finite."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from app.config.schema.hooks import NanGuardConf
from app.core.hook import Hook
from app.core.nonfinite import StepRecord, describe, greatest
from app.core.state import Run, StepInfo
from app.errors import DataError

logger = logging.getLogger(__name__)


class NanGuard(NanGuardConf, Hook):
    """Look at losses, gradient norms (where there are any) and weights every `interval` steps, and as an epoch ends.

    stop: raise after `max_bad` bad looks in a row.
    skip: do not apply a step with non-finite gradients; raise after `max_bad * interval` of them in a row, or when the
        weights themselves are not finite.
    rollback: return to the newest intact checkpoint and skip such steps from then on, for a replay alone would end
        where it ended before; raise after `max_rollbacks`.

    It looks before every save too, so that nothing bad is saved. Such a look acts where the next one would act anyway,
    but is not counted, and what it read is state: a resumed run counts what an uninterrupted one counts.

    Gradients that overflow under a GradScaler are its business and do not count. Runs last among the hooks of a step.

    Raises:
        DataError: with the step, its learning rate, loss scale and samples, and the last good checkpoint.
    """

    in_test = False
    decides_on_nonfinite = True

    def __post_init__(self) -> None:
        self.unread: list[StepInfo] = []
        self.window: list[StepRecord] = []
        """Steps since the last counted look, as far as they were read."""
        self.bad_looks = self.rollbacks = 0
        self.skipped = self.skipped_in_a_row = 0
        self.message = ""

    def attach(self, run: Run) -> None:
        self.run = run
        run.skip_nonfinite = self.policy == "skip"

    def step_end(self, run: Run, step: StepInfo) -> None:
        self.unread.append(step._replace(logits=(), targets=()))  # the outputs need not live until the look
        if step.step % self.interval == 0 or run.state.progress.batch == run.data.steps_per_epoch:
            self.look(run, counted=True)

    def before_save(self, run: Run) -> None:
        if self.unread:
            self.look(run, counted=False)

    def look(self, run: Run, *, counted: bool) -> None:
        """Read the steps not read yet from the device, in one transfer, and act by the policy."""
        records, finite_weights = read(run, self.unread)
        self.unread = []
        self.window += records
        given_up = run.skip_nonfinite and self._count_skipped(records)
        bad = next((record for record in self.window if not record.finite), None)
        hopeless = given_up if run.skip_nonfinite else bad is not None
        verdict = run.world.agree(2 if not finite_weights else int(hopeless))
        last, looks = self.window[-1], self.bad_looks + bool(verdict)
        if counted:
            self.window, self.bad_looks = [], looks if verdict else 0
        # Weights that are not finite cannot be saved, so a save does not wait for max_bad looks.
        unsaveable = verdict == 2 and not counted
        if verdict and (self.policy == "skip" or looks >= self.max_bad or unsaveable):
            what = "loss or gradients" if bad else "weights" if not finite_weights else "another rank's numbers"
            self._act(run, describe(run, bad or last, what))

    def _act(self, run: Run, message: str) -> None:
        if self.policy != "rollback":
            raise DataError(f"{message}; try a lower optim.lr, train.clip_norm, or hooks.nan_guard.policy=rollback")
        if self.rollbacks >= self.max_rollbacks:
            raise DataError(
                f"{message}; gave up after {self.max_rollbacks} rollback(s) (hooks.nan_guard.max_rollbacks)"
            )
        run.request_rollback(message)

    @contextmanager
    def rolling_back(self, run: Run) -> Iterator[None]:
        message, count = run.rollback_reason, self.rollbacks + 1
        yield
        self.rollbacks, self.bad_looks, self.skipped_in_a_row = count, 0, 0  # not what the checkpoint held
        run.skip_nonfinite = True
        logger.warning(
            "%s; rolled back to step %d (rollback %d of %d); non-finite steps are skipped from here on",
            message,
            run.state.progress.step,
            count,
            self.max_rollbacks,
        )

    def _count_skipped(self, records: Sequence[StepRecord]) -> bool:
        """Count the steps that were not applied; True when there were too many in a row, at whichever of `records`.

        Step by step, so that it does not matter at which steps the looks are.
        """
        before, too_many = self.skipped, False
        for record in records:
            self.skipped += not record.finite
            self.skipped_in_a_row = 0 if record.finite else self.skipped_in_a_row + 1
            too_many |= self.skipped_in_a_row >= self.max_bad * self.interval
        if self.skipped > before:
            logger.warning(
                "step %d: skipped %d of the last %d steps, whose gradients were not finite (%d so far)",
                records[-1].step,
                self.skipped - before,
                len(records),
                self.skipped,
            )
        return too_many

    def state_dict(self) -> dict[str, Any]:
        return {
            "window": [asdict(record) for record in self.window],
            "bad_looks": self.bad_looks,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.unread = []
        self.window = [StepRecord(**record) for record in state.get("window", ())]
        self.bad_looks, self.rollbacks = state["bad_looks"], state["rollbacks"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.run.skip_nonfinite = self.policy == "skip" or (self.policy == "rollback" and self.rollbacks > 0)


@torch.no_grad()
def read(run: Run, steps: Sequence[StepInfo]) -> tuple[list[StepRecord], bool]:
    """The numbers of `steps`, and whether all weights and buffers are finite; one transfer.

    Under a GradScaler without the norms: gradients that overflow are its business.
    """
    norms = [None if run.state.scaler is not None else step.grad_norm for step in steps]
    weights = greatest(run.state.model.parameters()).isfinite().all()
    weights &= ~greatest(run.state.model.buffers()).isnan().any()  # a mask may hold infinities
    columns = [step.loss for step in steps] + [norm for norm in norms if norm is not None] + [weights]
    *numbers, finite_weights = torch.stack([column.detach().float() for column in columns]).tolist()
    losses, rest = numbers[: len(steps)], iter(numbers[len(steps) :])
    records = [
        StepRecord(step.step, step.epoch, step.batch, step.lr, loss, None if norm is None else next(rest))
        for step, loss, norm in zip(steps, losses, norms, strict=True)
    ]
    return records, bool(finite_weights)
