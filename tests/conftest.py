"""Fixtures that several tests share: the real command, in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from invocation import Terminal
from runs import RunApp

from app import cli


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
