"""What the loop must not do to be fast: make the host wait for the device between log lines."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from runs import RunApp
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from app.core.hook import Hook
from app.core.state import Run

READS = {
    getattr(torch.Tensor, name)
    for name in (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__contains__",
    )
}
"""Methods that wait for the device."""
SYNCHRONOUS = (
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
)
"""Operators that do, whoever calls them."""

INTERVAL, STEPS = 5, 20
counted: Counter[int] = Counter()
"""Reads by the number of steps done before."""


class CalledReads(TorchFunctionMode):
    """Counts reads that Python code asks for."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            counted[self.run.state.progress.step] += 1
        return function(*args, **(kwargs or {}))


class DispatchedReads(TorchDispatchMode):
    """Counts reads that operators end in."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in SYNCHRONOUS:
            counted[self.run.state.progress.step] += 1
        return function(*args, **(kwargs or {}))


class CountReads(Hook):
    """Watches the loop from its first batch to the end of the run, evaluations left out."""

    def attach(self, run: Run) -> None:
        self.stack = ExitStack()

    def epoch_start(self, run: Run) -> None:
        self.stack.enter_context(CalledReads(run))
        self.stack.enter_context(DispatchedReads(run))

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        self.stack.close()
        yield

    def finish(self, run: Run, error: BaseException | None) -> None:
        self.stack.close()


class Reading(Hook):
    """What no hook may do."""

    def step_end(self, run: Run, step: Any) -> None:
        step.loss.item()


def hook(name: str) -> str:
    return f"+hooks.{name.lower()}={{_target_: test_loop_speed.{name}, priority: 1}}"


RECIPE = (
    "data=fake",
    "data.size=80",
    "data.val_size=8",
    "data.image_size=8",
    "data.channels=1",
    "data.batch_size=4",
    "data.augment=[crop,flip]",
    "model.width=4",
    "train.clip_norm=1",
    "train.max_epochs=1",
    "hooks=[default,ema]",
    f"hooks.logger.interval={INTERVAL}",
    "trusted_packages=[test_loop_speed]",
)


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    counted.clear()


@pytest.mark.parametrize(
    "extra", [(), ("train.amp=bf16",), ("train.accumulate=2",)], ids=["plain", "amp", "accumulate"]
)
def test_the_host_waits_for_the_device_only_at_log_lines(run_app: RunApp, extra: tuple[str, ...]) -> None:
    run_app("run", *RECIPE, hook("CountReads"), *extra)
    assert counted[INTERVAL] > 0, "the count does not see the logger's own read"
    assert {step for step in counted if step % INTERVAL} == set()


def test_a_read_at_every_step_would_be_seen(run_app: RunApp) -> None:
    run_app("run", *RECIPE, hook("CountReads"), hook("Reading"))
    assert {step for step in counted if step % INTERVAL} == {step for step in range(1, STEPS) if step % INTERVAL}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_is_not_waited_for_between_log_lines(run_app: RunApp) -> None:
    run_app("run", *RECIPE, "env.device=cuda", hook("ForbidSynchronization"))


class ForbidSynchronization(Hook):
    """An error at every synchronising call of the steps that write no line."""

    def step_end(self, run: Run, step: Any) -> None:
        logs = (run.state.progress.batch + 1) % INTERVAL == 0
        torch.cuda.set_sync_debug_mode("default" if logs else "error")

    def finish(self, run: Run, error: BaseException | None) -> None:
        torch.cuda.set_sync_debug_mode("default")
