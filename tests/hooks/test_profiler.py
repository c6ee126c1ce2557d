from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make, tiny_run, train

from app.config.schema.hooks import ProfilerConf
from app.core.ranks import World


def trace(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def test_writes_a_trace_of_each_cycle(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    conf = ProfilerConf(wait=1, warmup=1, active=2, repeat=2, record_shapes=True)
    train(run, {"profiler": make(conf)})
    files = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert files == ["main.4.pt.trace.json", "main.8.pt.trace.json"]
    for name in files:
        names = [event.get("name", "") for event in trace(tmp_path / "profile" / name)]
        assert sum(name == "aten::conv2d" for name in names) >= 2
        assert "Optimizer.step#SGD.step" in names
        assert sum(name.startswith("ProfilerStep") for name in names) >= 2
    tables = run.visualizer.tables  # type: ignore[attr-defined]
    assert [(name, step) for name, _, _, step in tables] == [("profile/operators", 4), ("profile/operators", 8)]
    columns, rows = tables[0][1], tables[0][2]
    assert columns == ["operator", "calls", "self_cpu_ms", "self_device_ms"]
    assert {str(row[0]) for row in rows} & set(names)
    assert all(len(row) == 4 and row[2] >= 0 for row in rows)


DETAILS = {"record_shapes": "Input Dims", "with_stack": "Python id", "profile_memory": "Bytes"}
"""What each setting adds to the arguments of some events."""


@pytest.mark.parametrize("setting", DETAILS)
def test_details_only_on_request(tmp_path: Path, setting: str) -> None:
    for wanted in (False, True):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        train(tiny_run(folder), {"profiler": make(ProfilerConf(wait=0, warmup=1, active=1, **{setting: wanted}))})
        events = trace(folder / "profile" / "main.2.pt.trace.json")
        detailed = [event for event in events if DETAILS[setting] in event.get("args", {})]
        assert bool(detailed) is wanted


def test_flops_are_a_column_of_the_table(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    train(run, {"profiler": make(ProfilerConf(wait=0, warmup=1, active=1, with_flops=True))})
    ((_, columns, rows, _),) = run.visualizer.tables  # type: ignore[attr-defined]
    assert columns[-1] == "gflops"
    found = {str(row[0]): row[-1] for row in rows}
    images, places, kernel, channels = 4, 4 * 4, 9, 4
    assert found["aten::conv2d"] == pytest.approx(2 * images * places * kernel * channels / 1e9)


def test_a_run_that_ends_too_early_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(tmp_path)
    hook = make(ProfilerConf(wait=100))
    train(run, {"profiler": hook})
    with caplog.at_level(logging.WARNING):
        hook.finish(run, None)
    assert "the run ended before the last cycle was recorded" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_only_the_main_rank_records(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.world = World(torch.device("cpu"), rank=1, size=2)
    hook = make(ProfilerConf(wait=0))
    hook.epoch_start(run)
    assert hook.profile is None
