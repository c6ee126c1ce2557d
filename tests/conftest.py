"""What several tests share: running the real command in this process, and comparing what runs left."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from invocation import Terminal

from app import cli

RunApp = Callable[..., Path]
NOT_REPEATABLE = ("time", "seconds", "images_per_second", "data_time", "memory_mib")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small models are quicker on one thread, and the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_app(tmp_path: Path, one_thread: None) -> RunApp:
    """Runs `python -m app OVERRIDES` in this process, in `tmp_path / NAME`; returns the run folder."""

    def run(name: str, *overrides: str) -> Path:
        folder = tmp_path / name
        assert cli.main([f"hydra.run.dir={folder}", f"output_root={tmp_path}", *overrides]) == 0
        return folder

    return run


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A folder of its own, and `python -m app` in it."""
    return Terminal(tmp_path, monkeypatch, capsys)


def digest(value: Any) -> str:
    """A hash of the bits of nested tensors, numbers, strings, lists and dicts."""
    hasher = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hasher.update(str((item.dtype, tuple(item.shape))).encode())
            hasher.update(item.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                feed(key)
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            hasher.update(str(len(item)).encode())
            for element in item:
                feed(element)
        else:
            hasher.update(repr(item).encode())

    feed(value)
    return hasher.hexdigest()


def scalars(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a run, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "vis_data" / "scalars.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.split("/")[-1] not in NOT_REPEATABLE} for row in rows]
