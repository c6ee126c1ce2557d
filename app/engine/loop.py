"""The training loop.

    while not finished:
        epoch_start
        for batch in data.train(epoch, progress.batch):
            train_step: seed, schedule, forward, backward, clip, optimizer step
            progress ticks
            step_end
            evaluation, when due: evaluating( forward over the validation set, eval_end )
            epoch_end, when the epoch rolled over
            commit: the one consistent moment; only here is anything saved or stopped

Nothing here reads a tensor from the device; who wants a value reads it in a hook, at its own interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from time import perf_counter
from typing import Any

import torch

from app.core.clock import due
from app.core.hook import bind, call
from app.core.parallel import gradient_sync, is_sharded, whole
from app.core.rng import step_seeder
from app.core.state import Run, StepBatch, StepInfo
from app.errors import DataError

Autocast = Callable[[], AbstractContextManager[Any]]
Hooks = dict[str, list[tuple[str, Callable[..., Any]]]]


def fit(
    run: Run,
    *,
    val_interval: int,
    val_begin: int,
    clip_norm: float | None,
    autocast: Autocast,
    rollback: Callable[[], bool],
) -> None:
    """Train from `run.state.progress` to `run.length`, or until a hook calls `run.stop`.

    `rollback` returns to the newest intact checkpoint, False when there is none; a hook asks for it by
    `run.request_rollback`.
    """
    points = bind(run.hooks)
    progress, steps_per_epoch = run.state.progress, run.data.steps_per_epoch
    step_end = points["step_end"]
    run.evaluate = lambda: evaluate(run, "val", autocast)

    def evaluation_due() -> bool:
        if run.by_epoch and progress.batch:
            return False
        return due(run.count, val_interval, val_begin) or run.finished

    def end_iteration(rolled: bool) -> None:
        if run.stop_reason is None and evaluation_due():
            if not _evaluate_with_hooks(run, points):
                call("commit", points["commit"], run)  # interrupted: saved as pending, done first on resume
                return
            progress.evaluated = progress.step
        if rolled:
            call("epoch_end", points["epoch_end"], run)
        call("commit", points["commit"], run)

    if progress.step > progress.evaluated and progress.step > 0 and evaluation_due():
        end_iteration(rolled=progress.batch == 0)
    run.state.model.train()
    while True:
        if run.rollback_reason is not None and run.exit_code == 0:
            _roll_back(run, rollback)
        if run.finished or run.stop_reason is not None:
            break
        call("epoch_start", points["epoch_start"], run)
        train_step = make_train_step(run, clip_norm, autocast)  # again after a rollback: the optimizer's groups are new
        before = perf_counter()
        for batch in run.data.train(progress.epoch, progress.batch):
            data_seconds = perf_counter() - before
            info = train_step(batch, data_seconds, before)
            progress.step += 1
            progress.batch += 1
            progress.samples += batch.size
            if step_end:
                call("step_end", step_end, run, info)
                if run.rollback_reason is not None:
                    break  # what this step left is not worth an evaluation
            rolled = progress.batch >= steps_per_epoch
            if rolled:
                progress.epoch += 1
                progress.batch = 0
            end_iteration(rolled)
            if rolled or run.stop_reason is not None or run.finished or run.rollback_reason is not None:
                break
            before = perf_counter()


def make_train_step(
    run: Run, clip_norm: float | None, autocast: Autocast
) -> Callable[[StepBatch, float, float], StepInfo]:
    """The function that does one optimizer step; what does not change between steps is looked up here, once."""
    state, world = run.state, run.world
    model, optimizer, scaler, progress = state.forward, state.optimizer, state.scaler, state.progress
    seed_step = step_seeder(run.rank_seed, world.rank, world.device)
    groups = [(group, group["initial_lr"]) for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def train_step(batch: StepBatch, data_seconds: float, started: float) -> StepInfo:
        seed_step(progress.step)
        factor = run.schedule.factor(run.position)
        for group, base in groups:
            group["lr"] = base * factor
        optimizer.zero_grad(set_to_none=True)
        loss, logits, targets = None, [], []
        for number, micro in enumerate(batch.micros, start=1):
            with gradient_sync(model, number == len(batch.micros)):
                with autocast():
                    output = model(micro.images)
                    part = run.loss(output, micro.targets)
                share = micro.size / batch.size
                if share * world.size != 1:
                    scaled = part * (share * world.size)  # ranks average their gradients: together the mean
                else:
                    scaled = part
                (scaled if scaler is None else scaler.scale(scaled)).backward()  # type: ignore[no-untyped-call]
            part = part.detach() * share if share != 1 else part.detach()
            loss = part if loss is None else loss + part
            logits.append(output.detach()[: micro.size])
            targets.append(micro.targets[: micro.size])
        grad_norm = apply_gradients(optimizer, scaler, parameters, clip_norm, run.skip_nonfinite)
        assert loss is not None
        return StepInfo(
            step=progress.step + 1,
            epoch=progress.epoch,
            batch=progress.batch,
            loss=loss,
            logits=logits,
            targets=targets,
            grad_norm=grad_norm,
            lr=optimizer.param_groups[0]["lr"],
            size=batch.size,
            data_seconds=data_seconds,
            step_seconds=perf_counter() - started,
        )

    return train_step


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    parameters: Sequence[torch.Tensor],
    clip_norm: float | None,
    skip_nonfinite: bool,
) -> torch.Tensor | None:
    """Clips and takes the optimizer step; returns the gradients' norm where one was needed, a scalar on the device."""
    grad_norm = None
    if clip_norm is not None or skip_nonfinite:
        if scaler is not None:
            scaler.unscale_(optimizer)
        greatest = clip_norm if clip_norm is not None else float("inf")
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, greatest))
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif not skip_nonfinite or bool(torch.isfinite(grad_norm)):  # type: ignore[arg-type]
        optimizer.step()
    return grad_norm


def evaluate(run: Run, split: str, autocast: Autocast) -> dict[str, float] | None:
    """Evaluates the model as it is on `split`; sets `run.evaluation`, returns its metrics named `phase/quantity`.

    None when the run was asked to stop meanwhile.
    """
    model, world = run.state.model, run.world
    predict = mirrored(model, run.data.multi_label) if run.tta else model
    started = perf_counter()
    sharded = is_sharded(model)
    world.share(list(model.buffers()))
    model.eval()
    try:
        run.metrics.start(run.data.eval_size(split))
        with torch.inference_mode():
            for batch in run.data.evaluate(split):
                if world.agree(int(run.interrupted())):
                    return None
                if batch is not None:
                    with autocast():
                        logits = predict(batch.images)
                    run.metrics.update(logits.float(), batch.targets, batch.indices)
                elif (
                    sharded
                ):  # its forward is a collective: a rank without a batch in this round takes part all the same
                    side = run.data.image_size
                    predict(torch.zeros(1, run.data.channels, side, side, device=world.device))
            run.evaluation = run.metrics.compute(world)
    finally:
        model.train()
    run.evaluation_seconds = perf_counter() - started
    return {f"{run.phase}/{name}": value for name, value in run.evaluation.metrics.items()}


def _roll_back(run: Run, rollback: Callable[[], bool]) -> None:
    """Return to the newest checkpoint, with the hooks' contexts around it; what ended the run meanwhile is undone too.

    Raises:
        DataError: there is no checkpoint.
    """
    with ExitStack() as stack:
        for hook in run.hooks.values():
            stack.enter_context(hook.rolling_back(run))
        if not rollback():
            raise DataError(f"{run.rollback_reason}; there is no checkpoint to roll back to")
    run.rollback_reason = run.stop_reason = None


def _evaluate_with_hooks(run: Run, points: Hooks) -> bool:
    """One evaluation inside the hooks' contexts; False when it was interrupted."""
    with ExitStack() as stack:
        for name, context in points["evaluating"]:
            try:
                stack.enter_context(context(run))
            except Exception as error:
                error.add_note(f"raised by hooks.{name} at evaluating")
                raise
        metrics = run.evaluate()
        if metrics is None:
            return False
        call("eval_end", points["eval_end"], run, metrics)
    return True


def test(run: Run, autocast: Autocast) -> dict[str, float]:
    """Evaluates the test split (the validation split of data without one), with the hooks of an evaluation.

    Raises KeyboardInterrupt when asked to stop.
    """
    points = bind(run.hooks)
    run.evaluate = lambda: evaluate(run, "test", autocast)
    metrics: dict[str, float] = {}

    def keep(run: Run, values: dict[str, float]) -> None:
        metrics.update(values)

    points["eval_end"].append(("test", keep))
    if not _evaluate_with_hooks(run, points):
        raise KeyboardInterrupt
    return metrics


def mirrored(
    model: Callable[[torch.Tensor], torch.Tensor], multi_label: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Test-time augmentation: logits of the mean probabilities of an image and its mirror image."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        views = torch.stack([model(images), model(images.flip(-1))]).float()
        if multi_label:
            return torch.logit(views.sigmoid().mean(dim=0))
        return views.softmax(dim=-1).mean(dim=0).log()

    return forward


def autocast_for(amp: str | None, device: torch.device) -> Autocast:
    """The autocast context of `train.amp`: None, `bf16` or `fp16`."""
    if amp is None:
        off = nullcontext()
        return lambda: off
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return lambda: torch.autocast(device.type, dtype=dtype)
