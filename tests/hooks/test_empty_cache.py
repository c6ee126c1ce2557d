from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import make, tiny_run, train

from app.config.schema.hooks import EmptyCacheConf
from app.core.hook import Hook
from app.core.ranks import World
from app.core.state import Run, StepInfo
from app.hooks.empty_cache import EmptyCache


@pytest.mark.parametrize(
    ("conf", "calls"),
    [
        (EmptyCacheConf(), 3),
        (EmptyCacheConf(before_epoch=True), 6),
        (EmptyCacheConf(after_epoch=False), 0),
        (EmptyCacheConf(after_epoch=False, after_iter=True), 9),
    ],
)
def test_is_called_where_configured(
    conf: EmptyCacheConf, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's function is counted, so that this also runs without a GPU."""
    found = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(1))

    class OnGPU(EmptyCache):
        """Sees the run as one on a GPU."""

        def epoch_start(self, run: Run) -> None:
            super().epoch_start(gpu)

        def step_end(self, run: Run, step: StepInfo) -> None:
            super().step_end(gpu, step)

        def epoch_end(self, run: Run) -> None:
            super().epoch_end(gpu)

    gpu = tiny_run(tmp_path, World(torch.device("cuda")))
    hook: Hook = OnGPU(before_epoch=conf.before_epoch, after_epoch=conf.after_epoch, after_iter=conf.after_iter)
    train(tiny_run(tmp_path), {"empty_cache": hook})
    assert len(found) == calls


def test_nothing_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("called"))
    train(tiny_run(tmp_path), {"empty_cache": make(EmptyCacheConf(before_epoch=True, after_iter=True))})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_is_given_back(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, World(torch.device("cuda", 0)))
    block = torch.empty(2**26, device="cuda")
    del block
    reserved = torch.cuda.memory_reserved()
    make(EmptyCacheConf()).epoch_end(run)
    assert torch.cuda.memory_reserved() < reserved
