"""Slots from GPUs and cores."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.launch.slots import cores, environment, make_slots, threads_of, visible_gpus


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,1", ["0", "1"]),
        (" 3 , 5", ["3", "5"]),
        ("", []),
        ("-1", []),
        ("0,-1,2", ["0"]),
        ("GPU-ab,MIG-c", ["GPU-ab", "MIG-c"]),
    ],
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected


def test_nvidia_smi_is_asked_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho 0\necho 1\n")
    stand_in.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_groups_of_gpus() -> None:
    assert [slot.gpus for slot in make_slots([4, 5, 6, 7, 8], 2, 1, None)] == [("4", "5"), ("6", "7")]
    assert [slot.gpus for slot in make_slots([0, 1], 1, 2, None)] == [("0",), ("1",), ("0",), ("1",)]


def test_without_gpus_a_slot_for_each_core() -> None:
    assert len(make_slots([], 1, 1, None)) == cores()
    assert len(make_slots([], 1, 1, 3)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 2, 1, None), "gpus_per_job=2, but this machine shows no GPU"),
        (([0], 2, 1, None), "gpus_per_job=2, but there are only 1 GPUs"),
        (([0, 1], 2, 2, None), "jobs_per_gpu=2 needs gpus_per_job=1"),
        ((True, 1, 1, None), "gpus must be auto or a list"),
    ],
)
def test_what_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_slots(*arguments)


def test_threads_are_divided_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of(None, 1) == cores()
    assert threads_of(None, 10 * cores()) == 1
    assert threads_of(5, 2) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_of(None, 2) == 7


def test_a_job_sees_its_own_gpus_only() -> None:
    slots = make_slots([3, 4, 5, 6], 2, 1, None)
    assert [environment(slot, 1)["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3,4", "5,6"]
    assert environment(make_slots([], 1, 1, 1)[0], 1)["CUDA_VISIBLE_DEVICES"] == ""
