"""A tracker never hurts the run: whatever a backend does, the others get every call, and one warning says what is."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from app.core.ranks import World
from app.visualizer import fanout
from app.visualizer.fanout import Fanout, build

PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)


class Kept:
    """Keeps its calls; `synchronous` as `local` is."""

    def __init__(self, synchronous: bool = False) -> None:
        self.synchronous = synchronous
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any) -> None:
            self.threads.add(threading.current_thread().name)
            self.calls.append((name, args))

        return call


class Raising(Kept):
    def scalars(self, values: dict[str, float], step: int, epoch: int) -> None:
        self.calls.append(("scalars", (step,)))
        raise ConnectionError("no route to tracker\nsecond line")


class Hanging(Kept):
    """Does not come back from `method` until the test is over."""

    def __init__(self, released: threading.Event, method: str = "scalars") -> None:
        super().__init__()
        setattr(self, method, lambda *args: released.wait(60))


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def feed(visualizer: Fanout, steps: int) -> None:
    visualizer.config({"a": 1})
    for step in range(1, steps + 1):
        visualizer.scalars({"train/loss": 1.0}, step, 0)
    visualizer.images("val/predictions", [PICTURE], ["one"], steps)
    visualizer.table("val/per_class", ["class"], [["a"]], steps)
    visualizer.flush()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_every_backend_gets_every_call_in_order() -> None:
    local, tracker = Kept(synchronous=True), Kept()
    visualizer = Fanout({"local": local, "tracker": tracker})
    feed(visualizer, 50)
    visualizer.close({"best": 1.0})
    assert local.calls == tracker.calls
    assert [name for name, _ in local.calls] == ["config", *["scalars"] * 50, "images", "table", "flush", "close"]
    assert [args[1] for name, args in local.calls if name == "scalars"] == list(range(1, 51))
    assert local.threads == {threading.current_thread().name}
    assert tracker.threads == {"visualizer.tracker"}


def test_closing_twice_closes_once() -> None:
    tracker = Kept()
    visualizer = Fanout({"tracker": tracker})
    visualizer.close({})
    visualizer.close({})
    assert tracker.calls == [("close", ({},))]


def test_a_raising_backend_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Raising(), Kept()
    visualizer = Fanout({"bad": bad, "good": good})
    feed(visualizer, 5)
    visualizer.close({})
    assert bad.calls == [("config", ({"a": 1},)), ("scalars", (1,))]
    assert [name for name, _ in good.calls].count("scalars") == 5
    (warning,) = warnings(caplog)
    assert "visualizer.bad failed in scalars (ConnectionError: no route to tracker)" in warning
    assert "second line" not in warning


def test_a_hanging_backend_is_dropped_at_the_end(released: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    good = Kept()
    visualizer = Fanout({"stuck": Hanging(released), "good": good}, stall_seconds=0.1)
    feed(visualizer, 5)
    visualizer.close({})
    assert good.calls[-1] == ("close", ({},))
    (warning,) = warnings(caplog)
    assert "visualizer.stuck hangs in scalars" in warning


def test_closing_itself_is_limited_too(released: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    visualizer = Fanout({"stuck": Hanging(released, "close")}, stall_seconds=0.1, close_seconds=0.2)
    feed(visualizer, 1)
    visualizer.close({})
    assert "visualizer.stuck hangs in close" in warnings(caplog)[0]


def test_a_slow_backend_that_gets_on_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Kept):
        def scalars(self, *args: Any) -> None:
            threading.Event().wait(0.05)
            self.calls.append(("scalars", args))

    slow = Slow()
    visualizer = Fanout({"slow": slow}, stall_seconds=2.0)
    feed(visualizer, 20)
    visualizer.close({})
    assert [name for name, _ in slow.calls].count("scalars") == 20
    assert not warnings(caplog)


def test_a_backend_that_falls_behind_is_dropped(
    released: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "QUEUE_CALLS", 10)
    stuck = Hanging(released)
    visualizer = Fanout({"stuck": stuck})
    feed(visualizer, 100)
    (warning,) = warnings(caplog)
    assert "visualizer.stuck does not keep up" in warning
    visualizer.close({})
    assert visualizer.threaded[0].calls.qsize() <= 10


def test_waiting_pictures_are_limited_in_bytes(
    released: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "QUEUE_BYTES", 10 * PICTURE.nbytes)
    visualizer = Fanout({"stuck": Hanging(released, "config")})
    visualizer.config({})
    visualizer.images("a", [PICTURE] * 9, [""] * 9, 1)
    assert not warnings(caplog)
    visualizer.images("a", [PICTURE] * 2, [""] * 2, 1)
    assert "does not keep up" in warnings(caplog)[0]


def test_memory_of_written_pictures_is_free_again() -> None:
    visualizer = Fanout({"good": Kept()})
    for step in range(20):
        visualizer.images("a", [PICTURE] * 3, [""] * 3, step)
    visualizer.close({})
    assert visualizer.threaded[0].waiting_bytes == 0


def test_local_is_tried_again_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    bad = Raising(synchronous=True)
    visualizer = Fanout({"local": bad})
    feed(visualizer, 5)
    assert [args for name, args in bad.calls if name == "scalars"] == [(step,) for step in range(1, 6)]
    (warning,) = warnings(caplog)
    assert "visualizer.local failed in scalars" in warning


def test_other_ranks_write_nothing() -> None:
    backend = Kept(synchronous=True)
    feed(build({"local": backend}, World(torch.device("cpu"), rank=1, size=2)), 3)  # type: ignore[arg-type]
    assert not backend.calls
    feed(build({"local": backend}, World(torch.device("cpu"))), 3)  # type: ignore[arg-type]
    assert backend.calls


def test_values_are_taken_at_the_time_of_the_call() -> None:
    tracker = Kept()
    visualizer = Fanout({"tracker": tracker})
    values = {"train/loss": 1.0}
    visualizer.scalars(values, 1, 0)
    values["train/loss"] = 2.0
    visualizer.close({})
    assert tracker.calls[0][1][0] == {"train/loss": 1.0}


def test_sync_waits_for_the_threads_but_not_for_ever(released: threading.Event) -> None:
    good, stuck = Kept(), Hanging(released, "sync")
    visualizer = Fanout({"good": good, "stuck": stuck, "bad": Raising(synchronous=True)}, 0.1, 0.1, sync_seconds=0.2)
    visualizer.scalars({"train/loss": 1.0}, 1, 0)
    visualizer.sync()
    assert [name for name, _ in good.calls] == ["scalars", "sync"]
    visualizer.sync_seconds = 1e6
    visualizer.sync()  # the one that still hangs is not waited for again
    assert [name for name, _ in good.calls] == ["scalars", "sync", "sync"]
    visualizer.close({})


def test_a_tracker_without_files_needs_no_sync() -> None:
    class Plain:
        def scalars(self, values: Any, step: int, epoch: int) -> None:
            pass

    visualizer = Fanout({"plain": Plain()}, stall_seconds=0.1)  # type: ignore[dict-item]
    visualizer.scalars({"train/loss": 1.0}, 1, 0)
    visualizer.sync()
    assert not visualizer.threaded[0].dropped
