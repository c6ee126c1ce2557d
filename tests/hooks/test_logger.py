import math
import statistics

import pytest

from app.hooks.logger import Logger, Window, make_windows

VALUES = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("method", "reduce"), [("mean", statistics.fmean), ("min", min), ("max", max), ("last", lambda values: values[-1])]
)
@pytest.mark.parametrize("size", [1, 3, 100, "epoch", "global"])
def test_a_window_reduces_its_newest_values(method: str, reduce: object, size: int | str) -> None:
    window = Window("loss", method, size, "x")
    assert math.isnan(window.result()) or method != "mean"
    for count, value in enumerate(VALUES, start=1):
        window.add(value)
        seen = VALUES[max(0, count - size) : count] if isinstance(size, int) else VALUES[:count]
        assert window.result() == pytest.approx(reduce(seen))  # type: ignore[operator]


@pytest.mark.parametrize("size", [3, "epoch", "global"])
def test_a_window_continues_from_its_state(size: int | str) -> None:
    whole, first, second = (Window("loss", "mean", size, "x") for _ in range(3))
    for value in VALUES:
        whole.add(value)
    for value in VALUES[:5]:
        first.add(value)
    second.load_state_dict(first.state_dict())
    for value in VALUES[5:]:
        second.add(value)
    assert second.result() == whole.result()
    assert second.state_dict() == whole.state_dict()


def test_a_custom_rule_replaces_or_adds() -> None:
    windows = {
        window.name: window
        for window in make_windows(
            10, [{"source": "loss", "window": "global"}, {"source": "top1", "method": "max", "name": "top1_max"}]
        )
    }
    assert windows["loss"].window == "global"
    assert (windows["top1_max"].method, windows["top1_max"].window) == ("max", 10)
    assert windows["top1"].method == "mean"
    assert windows["lr"].method == "last"


@pytest.mark.parametrize("size", [2, "epoch"])
@pytest.mark.parametrize("method", ["mean", "min", "max", "last"])
def test_steps_without_a_value_are_left_out(method: str, size: int | str) -> None:
    window = Window("top1", method, size, "top1")
    for value in (0.5, None):
        window.add(value)
    assert math.isnan(window.result()) if method == "last" else window.result() == 0.5
    window.reset()
    window.add(None)
    assert math.isnan(window.result()), "nothing left of what was before"


def test_a_number_is_fixed_unless_that_shows_nothing_or_too_much() -> None:
    logger = Logger()
    logger.digits = 4
    assert [logger.number(value) for value in (0.0, 0.5, -12.25, 0.00123, 3e7)] == [
        "0.0000", "0.5000", "-12.2500", "0.00123", "3e+07",
    ]  # fmt: skip
