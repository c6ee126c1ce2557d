"""What happens when numbers are no longer finite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from app.checkpoint.store import Store
from app.config.schema.hooks import NanGuardConf
from app.core.hook import Hook
from app.core.state import Run, StepInfo
from app.errors import DataError

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One step that was not looked at yet."""

    step: int
    epoch: int
    batch: int
    lr: float
    loss: torch.Tensor
    grad_norm: torch.Tensor | None


class NanGuard(NanGuardConf, Hook):
    """Looks at losses, gradient norms (where there are any) and weights every `interval` steps, and as an epoch ends.

    stop: raises after `max_bad` bad looks in a row.
    skip: a step with non-finite gradients is not applied; raises when that goes on for `max_bad * interval` steps, or
        when the weights themselves are not finite.
    rollback: returns to the newest intact checkpoint and skips such steps from then on, for a replay alone would end
        where it ended before; raises after `max_rollbacks`.

    Gradients that overflow under a GradScaler are its business and do not count. Runs last among the hooks of a step.

    Raises:
        DataError: with the step, its learning rate, loss scale and samples, and the last good checkpoint.
    """

    in_test = False

    def __post_init__(self) -> None:
        self.window: list[Entry] = []
        self.bad_looks = self.rollbacks = 0
        self.skipped = self.skipped_in_a_row = 0

    def attach(self, run: Run) -> None:
        self.run = run
        run.skip_nonfinite = self.policy == "skip"

    def step_end(self, run: Run, step: StepInfo) -> None:
        progress = run.state.progress
        self.window.append(Entry(progress.step, progress.epoch, progress.batch - 1, step.lr, step.loss, step.grad_norm))
        if progress.step % self.interval == 0 or progress.batch == run.data.steps_per_epoch:
            self.look(run)

    def look(self, run: Run) -> None:
        """Reads the window from the device, once, and acts by the policy."""
        window, self.window = self.window, []
        finite_steps, finite_weights = read(run, window)
        bad = next((entry for entry, finite in zip(window, finite_steps, strict=True) if not finite), None)
        if run.skip_nonfinite:
            self._count_skipped(window, finite_steps)
            hopeless = not finite_weights or self.skipped_in_a_row >= self.max_bad * self.interval
        else:
            hopeless = bad is not None or not finite_weights
        if not run.world.agree(int(hopeless)):
            self.bad_looks = 0
            return
        self.bad_looks += 1
        if self.policy != "skip" and self.bad_looks < self.max_bad:
            return
        message = describe(run, bad, window[-1], finite_weights)
        if self.policy != "rollback":
            raise DataError(f"{message}; try a lower optim.lr, train.clip_norm, or hooks.nan_guard.policy=rollback")
        self._roll_back(run, message)

    def _roll_back(self, run: Run, message: str) -> None:
        count = self.rollbacks + 1
        if count > self.max_rollbacks:
            raise DataError(
                f"{message}; gave up after {self.max_rollbacks} rollback(s) (hooks.nan_guard.max_rollbacks)"
            )
        if not run.rollback():
            raise DataError(f"{message}; there is no checkpoint to roll back to")
        self.rollbacks, self.bad_looks, self.skipped_in_a_row = count, 0, 0  # not what the checkpoint held
        run.skip_nonfinite = True
        logger.warning(
            "%s; rolled back to step %d (rollback %d of %d); non-finite steps are skipped from here on",
            message,
            run.state.progress.step,
            count,
            self.max_rollbacks,
        )

    def _count_skipped(self, window: list[Entry], finite: list[bool]) -> None:
        before = self.skipped
        for applied in finite:
            self.skipped += not applied
            self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if self.skipped > before:
            logger.warning(
                "step %d: skipped %d of the last %d steps, whose gradients were not finite (%d so far)",
                window[-1].step,
                self.skipped - before,
                len(window),
                self.skipped,
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "bad_looks": self.bad_looks,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = []
        self.bad_looks, self.rollbacks = state["bad_looks"], state["rollbacks"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.run.skip_nonfinite = self.policy == "skip" or (self.policy == "rollback" and self.rollbacks > 0)


@torch.no_grad()
def read(run: Run, window: list[Entry]) -> tuple[list[bool], bool]:
    """Whether each step's loss and gradient norm were finite, and whether all weights and buffers are; one transfer."""
    steps = torch.stack([entry.loss.detach().float() for entry in window]).isfinite()
    norms = [entry.grad_norm for entry in window if entry.grad_norm is not None]
    if len(norms) == len(window) and run.state.scaler is None:
        steps &= torch.stack(norms).isfinite()
    weights = greatest(run.state.model.parameters()).isfinite().all()
    weights &= ~greatest(run.state.model.buffers()).isnan().any()  # a mask may hold infinities
    *finite_steps, finite_weights = torch.cat([steps, weights[None]]).tolist()
    return finite_steps, finite_weights


def greatest(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The greatest magnitude in each floating-point tensor, or in this rank's shard of it; NaN where there is one."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    local = [tensor for tensor in local if tensor.numel() and tensor.dtype.is_floating_point]
    if not local:
        return torch.zeros(1)
    return torch.stack([norm.float() for norm in torch._foreach_norm(local, float("inf"))])


def describe(run: Run, bad: Entry | None, last: Entry, finite_weights: bool) -> str:
    """What is known about the first bad step, or about the last one where only the weights are bad."""
    entry = bad or last
    what = "loss or gradients" if bad is not None else "weights" if not finite_weights else "another rank's numbers"
    parts = [f"step {entry.step} (epoch {entry.epoch + 1}, batch {entry.batch + 1}): {what} not finite"]
    parts.append(f"loss {float(entry.loss)}")
    if entry.grad_norm is not None:
        parts.append(f"grad norm {float(entry.grad_norm)}")
    parts.append(f"lr {entry.lr:g}")
    if run.state.scaler is not None:
        parts.append(f"loss scale {run.state.scaler.get_scale():g}")
    if run.world.is_main and bad is not None:
        parts.append(f"samples {sample_indices(run, entry)}")
    parts.append(f"last good checkpoint: {last_checkpoint(run)}")
    return ", ".join(parts)


def sample_indices(run: Run, entry: Entry, most: int = 16) -> str:
    """This rank's samples of a past step, drawn again: the order is a function of the epoch."""
    for step in run.data.train(entry.epoch, entry.batch):
        indices = [index for micro in step.micros for index in micro.indices[: micro.size].tolist()]
        return ", ".join(map(str, indices[:most])) + (", …" if len(indices) > most else "")
    return "unknown"


def last_checkpoint(run: Run) -> str:
    """The newest checkpoint's path, or `none`."""
    if run.checkpoint_folder is None or not run.checkpoint_folder.is_dir():
        return "none"
    found = Store(run.checkpoint_folder).manifests()
    return str(run.checkpoint_folder / found[-1].name) if found else "none"
