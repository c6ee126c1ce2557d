from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_run

from app.core.state import Run
from app.errors import ConfigError
from app.hooks.early_stop import EarlyStop

CONFIG: dict[str, Any] = {
    "mode": "train",
    "metrics": {"topk": [1], "average": ["macro"], "monitor": "auto", "extra": {}},
    "hooks": {},
}


def fed(folder: Path, hook: EarlyStop, values: list[float], name: str = "val/top1") -> tuple[Run, int]:
    """The run, and after how many validations it was stopped (0: not at all)."""
    run = tiny_run(folder, config=CONFIG)
    hook.attach(run)
    for count, value in enumerate(values, start=1):
        hook.eval_end(run, {"val/top1": 0.0, "val/loss": 0.0} | {name: value})
        if run.stop_reason is not None:
            return run, count
    return run, 0


CASES: dict[str, tuple[dict[str, Any], list[float], int]] = {
    "improves": ({"patience": 1}, [0.1, 0.2, 0.3, 0.4], 0),
    "patience 2": ({"patience": 2}, [0.1, 0.5, 0.5, 0.4, 0.9], 4),
    "patience 0 and 1 stop at the first": ({"patience": 0}, [0.1, 0.5, 0.5], 3),
    "improvement starts the count anew": ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.7, 0.6], 0),
    "min_delta": ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.59, 0.9], 3),
    "slow gains add up": ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.62, 0.65, 0.8], 0),
    "threshold": ({"threshold": 0.9}, [0.5, 0.9], 2),
    "not finite": ({}, [0.5, float("nan")], 2),
    "not finite, not checked": ({"check_finite": False, "patience": 9}, [0.5, float("nan"), 0.6], 0),
    "nan from the start": ({"check_finite": False, "patience": 2}, [float("nan")] * 3, 2),
}


@pytest.mark.parametrize(("arguments", "values", "stopped"), CASES.values(), ids=CASES.keys())
def test_when_it_stops(tmp_path: Path, arguments: dict[str, Any], values: list[float], stopped: int) -> None:
    run, count = fed(tmp_path, EarlyStop(**arguments), values)
    assert count == stopped
    assert run.exit_code == 0
    if stopped:
        assert str(run.stop_reason).startswith("early stop: val/top1")


def test_less_is_better_for_a_loss(tmp_path: Path) -> None:
    assert fed(tmp_path, EarlyStop(monitor="loss", patience=2), [0.5, 0.4, 0.45, 0.41], "val/loss")[1] == 4
    assert fed(tmp_path, EarlyStop(monitor="loss", threshold=0.3), [0.5, 0.2], "val/loss")[1] == 2
    with pytest.raises(ConfigError, match=r"hooks\.early_stop\.rule=greater would keep the worst"):
        fed(tmp_path, EarlyStop(monitor="loss", rule="greater"), [], "val/loss")


def test_counters_survive_a_resume(tmp_path: Path) -> None:
    first, second = EarlyStop(patience=3), EarlyStop(patience=3)
    assert fed(tmp_path, first, [0.5, 0.4, 0.3])[1] == 0
    assert restored(tmp_path, second, first.state_dict()).stop_reason is None
    assert fed(tmp_path, second, [0.2])[1] == 1


def restored(folder: Path, hook: EarlyStop, state: dict[str, Any]) -> Run:
    run = tiny_run(folder, config=CONFIG)
    hook.attach(run)
    hook.load_state_dict(state)
    return run


def test_a_stopped_run_stays_stopped_unless_the_settings_changed(tmp_path: Path) -> None:
    first = EarlyStop(patience=2)
    assert fed(tmp_path, first, [0.5, 0.4, 0.3])[1] == 3
    reason = restored(tmp_path, EarlyStop(patience=2), first.state_dict()).stop_reason
    assert reason is not None
    assert "hooks.early_stop=null goes on" in reason
    assert restored(tmp_path, EarlyStop(patience=3), first.state_dict()).stop_reason is None
    assert restored(tmp_path, EarlyStop(patience=3, threshold=0.2), first.state_dict()).stop_reason is not None
    other = EarlyStop(monitor="loss", patience=2)
    assert restored(tmp_path, other, first.state_dict()).stop_reason is None
    assert other.best is None, "the best accuracy says nothing about the loss"


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hooks.early_stop.monitor: there is no metric 'accuracy'"):
        EarlyStop(monitor="accuracy").attach(tiny_run(tmp_path, config=CONFIG))
