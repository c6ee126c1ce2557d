"""Loader workers that are killed, hang, are signalled, or lose their parent."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.data.channel import LENGTH, Channel, send
from app.data.feed import Feed
from app.data.source import Splits
from app.errors import DataError

FeedOf = Callable[..., Feed]


class Trap:
    """A data set that does `trap` to its worker when it is asked for sample 5 of the training part."""

    classes = ("a", "b")

    def __init__(self, trap: Callable[[], Any] | None) -> None:
        self.trap = trap

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 5 and self.trap is not None:
            self.trap()
        return torch.full((1, 4, 4), index, dtype=torch.uint8), index % 2


def trapped(feed_of: FeedOf, trap: Callable[[], Any] | None, **keys: Any) -> Feed:
    splits = Splits(Trap(trap), Trap(None), ["a", "b"])
    return feed_of(splits, shuffle=False, batch_size=4, num_workers=2, **keys)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


def signal_me() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        os.kill(os.getpid(), getattr(signal, name))


def test_killed_worker_is_named(feed_of: FeedOf) -> None:
    feed = trapped(feed_of, kill_me)
    steps = feed.train(0, 0)
    with pytest.raises(DataError) as caught:
        list(steps)
    assert "data: loader worker 1 (pid " in str(caught.value)
    assert "), reading sample 5 of Trap died. Killed for lack of memory is the usual cause" in str(caught.value)
    feed.close()
    assert not multiprocessing.active_children()


def test_killed_idle_worker_raises_only_where_data_is_read(feed_of: FeedOf) -> None:
    feed = trapped(feed_of, None)
    steps = feed.train(0, 0)
    next(steps)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    for _ in range(100):
        time.sleep(0.001)  # where torch's SIGCHLD handler would raise
    with pytest.raises(DataError, match=r"loader worker \d \(pid \d+\), .* died"):
        list(steps)


def test_hanging_worker_is_named_and_ended(feed_of: FeedOf) -> None:
    feed = trapped(feed_of, hang, timeout=1.5)
    with pytest.raises(DataError) as caught:
        list(feed.train(0, 0))
    assert "data: loader worker 1 (pid " in str(caught.value)
    assert "), reading sample 5 of Trap: no answer for " in str(caught.value)
    assert str(caught.value).endswith("seconds (data.timeout=1.5)")
    feed.close()
    assert not multiprocessing.active_children()


def stop_me() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("part", ["train", "val"])
def test_stopped_worker_is_named_and_ended(feed_of: FeedOf, part: str) -> None:
    data = {"train": Trap(None), "val": Trap(None), part: Trap(stop_me)}
    feed = feed_of(Splits(data["train"], data["val"], ["a", "b"]), num_workers=2, timeout=1.5, eval_batch_size=4)
    with pytest.raises(DataError) as caught:
        list(feed.train(0, 0) if part == "train" else feed.evaluate("val"))
    assert re.fullmatch(
        r"data: loader worker \d \(pid \d+\), reading sample 5 of Trap, is stopped: no answer for 2 seconds "
        r"\(data.timeout=1.5\)",
        str(caught.value),
    )
    feed.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_batch_that_was_sent_needs_no_living_sender(feed_of: FeedOf, number: int) -> None:
    feed = trapped(feed_of, None, timeout=1.5)
    steps = feed.train(0, 0)
    found = [next(steps).micros[0]]
    time.sleep(1)  # in which the workers have read and sent all that they were asked for
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, number)
    with pytest.raises(DataError, match="is stopped: no answer" if number == signal.SIGSTOP else "died"):
        found += (step.micros[0] for step in steps)
    assert len(found) == 5, "the first batch, and two that each worker had read ahead"
    assert [int(batch.indices[0]) for batch in found] == [0, 4, 8, 12, 16]


def test_a_batch_may_be_sent_in_pieces_and_stop_in_the_middle() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    tensors = [torch.arange(5), torch.rand(2, 3)]
    send(theirs, "first", tensors)
    send(theirs, "x" * 100_000, ())
    while (taken := channel.take()) is None:
        assert channel.exchange(1)
    assert taken[0] == "first"
    assert all(torch.equal(left, right) for left, right in zip(taken[1], tensors, strict=True))
    while (taken := channel.take()) is None:
        assert channel.exchange(1)
    assert taken == ("x" * 100_000, [])
    theirs.sendall(LENGTH.pack(1000) + b"the rest never comes")
    assert channel.exchange(1)
    assert channel.take() is None
    theirs.close()
    assert not channel.exchange(1)
    assert channel.closed
    channel.close()


COMMAND = [sys.executable, str(Path(__file__).parents[2] / "benchmarks/loader_faults.py")]


def test_the_command_ends_with_one_message_when_a_worker_fails() -> None:
    """Stopped, killed, and each while a batch is on its way; in training and in evaluation."""
    places = ["training", "evaluation"]
    found = subprocess.run([*COMMAND, "--times", "1", "--places", *places], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_the_command_ends_with_one_message_twenty_times() -> None:
    found = subprocess.run([*COMMAND, "--times", "20"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_signals_of_the_run_are_not_the_workers(feed_of: FeedOf) -> None:
    feed = trapped(feed_of, signal_me)
    assert sum(step.size for step in feed.train(0, 0)) == 24


def test_workers_stay_from_epoch_to_epoch_and_end_with_the_feed(feed_of: FeedOf) -> None:
    feed = trapped(feed_of, None)
    assert not multiprocessing.active_children()
    pids = []
    for epoch in (0, 1):
        next(feed.train(epoch, 0))  # left in the middle
        pids.append({process.pid for process in multiprocessing.active_children()})
    assert pids[0] == pids[1]
    assert len(pids[0]) == 2
    feed.close()
    assert not multiprocessing.active_children()


ORPHANS = """
import os, time, torch
from app.data.feed import Feed
from app.data.source import Splits
from app.core.ranks import World
class Slow:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(1000 if index >= 8 else 0)
        return torch.zeros(1, 4, 4), 0
settings = dict(batch_size=8, eval_batch_size=8, shuffle=False, drop_last=False, num_workers=2, pin_memory=True,
    timeout=0, in_memory=False, device_resident="auto", augment=None, batch_augment=None, repeats=1, mean=None,
    std=None, image_size=None, on_error="raise", max_errors=1, limit_train=None, limit_val=None)
feed = Feed(Splits(Slow(), Slow(), ["a"]), settings, world=World(torch.device("cpu")), seed=0)
steps = feed.train(0, 0)
next(steps)
import multiprocessing
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_workers_die_with_their_parent() -> None:
    found = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert found.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in found.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
