from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from app.checkpoint.background import LARGE_BYTES, BackgroundWriter, Snapshot
from app.checkpoint.tree import plain, tensor_bytes, tensors

LARGE = LARGE_BYTES // 4 + 7


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def varied() -> dict[str, Any]:
    """Small and large tensors of several types and layouts."""
    image = torch.rand(2, 64, 64, 64)
    return {
        "large": torch.rand(LARGE),
        "half": torch.rand(2 * LARGE).to(torch.bfloat16),
        "double": torch.rand(LARGE, dtype=torch.float64),
        "bytes": torch.randint(255, (4 * LARGE,), dtype=torch.uint8),
        "complex": torch.rand(LARGE, dtype=torch.complex128),
        "channels last": image.to(memory_format=torch.channels_last),
        "transposed": torch.rand(1000, 700).T,
        "expanded": torch.rand(3).expand(LARGE, 3),
        "scalar": torch.tensor(3),
        "empty": [torch.zeros(0), torch.zeros(0, 3)],
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "plain": ["text", 1, (2.5, None)],
    }


def test_a_snapshot_is_a_copy_of_everything(threads: ThreadPoolExecutor) -> None:
    state = varied()
    copy = Snapshot(threads).take(state)
    before = [tensor.clone() for tensor in tensors(state)]
    for tensor in tensors(state):
        if tensor.numel() and tensor.stride() != (0, 1):
            tensor.data.zero_()
    for value, expected in zip(tensors(copy), before, strict=True):
        assert torch.equal(value, expected)
        assert value.dtype == expected.dtype
        assert not value.requires_grad
    assert copy["channels last"].is_contiguous(memory_format=torch.channels_last)
    assert copy["plain"] == ["text", 1, (2.5, None)]


def test_its_memory_is_used_again(threads: ThreadPoolExecutor) -> None:
    snapshot, state = Snapshot(threads), varied()
    first = [tensor.data_ptr() for tensor in tensors(snapshot.take(state))]
    assert [tensor.data_ptr() for tensor in tensors(snapshot.take(state))] == first
    state["large"] = torch.rand(LARGE + 1)  # grown: a new buffer, the others stay
    again = snapshot.take(state)
    assert torch.equal(again["large"], state["large"])
    assert torch.equal(again["half"], state["half"])


def test_tied_tensors_stay_one(threads: ThreadPoolExecutor) -> None:
    weight = torch.rand(5)
    copy = Snapshot(threads).take({"a": weight, "b": weight, "c": weight.clone()})
    assert copy["a"] is copy["b"]
    assert copy["a"] is not copy["c"]
    assert tensor_bytes(copy) == 40


def test_a_snapshot_draws_no_random_numbers(threads: ThreadPoolExecutor) -> None:
    state = varied()
    before = torch.get_rng_state()
    Snapshot(threads).take(state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("in_background", [True, False])
def test_result_and_error_come_out_once(in_background: bool) -> None:
    saver = BackgroundWriter(in_background)

    def fail(state: Any) -> str:
        raise OSError("full")

    assert saver.drain() is None
    assert saver.poll() is None
    saver.submit({"w": torch.ones(1)}, lambda state: f"w={state['w'].item()}")
    assert saver.busy
    assert saver.drain() == "w=1.0"
    assert not saver.busy
    saver.submit({}, fail)
    with pytest.raises(OSError, match="full"):
        saver.drain()
    assert saver.drain() is None
    saver.close()


def test_the_caller_does_not_wait_for_the_write() -> None:
    saver, gate = BackgroundWriter(), threading.Event()
    weight = torch.ones(1)

    def write(state: Any) -> str:
        gate.wait(10)
        return str(state["w"].item())

    saver.submit({"w": weight}, write)
    assert saver.poll() is None
    weight.zero_()
    gate.set()
    assert saver.drain() == "1.0"
    saver.close()


def test_plain_takes_what_the_safe_loader_gives_back() -> None:
    class Name(str):
        pass

    made = plain({"a": [np.float64(1.5), np.int64(2), np.bool_(True)], Name("b"): (Name("c"), None)}, "x")
    assert made == {"a": [1.5, 2, True], "b": ("c", None)}
    assert [type(value) for value in made["a"]] == [float, int, bool]
    assert {type(key) for key in made} == {str}
    with pytest.raises(TypeError, match=r"x\['a'\]\[0\] is a set; a checkpoint holds"):
        plain({"a": [set()]}, "x")
