"""A run folder that cannot be written is one message, 73, whichever file of it is the first to fail."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from invocation import Terminal

TINY = ("data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "train.max_epochs=1")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` as a mount that nobody, root included, can write to."""
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def refused(terminal: Terminal, *words: str) -> str:
    outcome = terminal.run(*TINY, *words)
    assert outcome.code == 73, outcome.message
    outcome.says("error: cannot (write|make)")
    assert outcome.message.count("error: ") == 1
    return outcome.message


def test_a_read_only_file_system(terminal: Terminal, one_thread: None) -> None:
    assert terminal.run(*TINY, "hydra.run.dir=run").code == 0
    with read_only(terminal.folder / "run"):
        refused(terminal, "hydra.run.dir=run", "resume=true", "train.max_epochs=2")
        refused(terminal, "hydra.run.dir=run/new")
        refused(terminal, "output_root=run")
        refused(terminal, "hooks.checkpoint.out_dir=run")
        refused(terminal, "hydra.run.dir=run", "mode=test", "load_from=run/checkpoints/best.pth")
    assert terminal.run(*TINY, "hydra.run.dir=run", "resume=true", "train.max_epochs=2").code == 0


@pytest.mark.parametrize("name", ["app.log", "seed.json", "environment.json"])
def test_a_folder_in_the_place_of_a_file(name: str, terminal: Terminal, one_thread: None) -> None:
    terminal.write({f"run/{name}/x": ""})
    assert f"run/{name}: Is a directory" in refused(terminal, "hydra.run.dir=run")


@pytest.mark.parametrize("name", [".hydra", "checkpoints"])
def test_a_file_in_the_place_of_a_folder(name: str, terminal: Terminal, one_thread: None) -> None:
    terminal.write({f"run/{name}": ""})
    assert f"run/{name}" in refused(terminal, "hydra.run.dir=run")


@pytest.mark.parametrize("key", ["hydra.run.dir", "output_root", "hooks.checkpoint.out_dir"])
def test_a_file_that_a_key_names(key: str, terminal: Terminal, one_thread: None) -> None:
    terminal.write({"file": ""})
    refused(terminal, f"{key}=file")


def test_a_visualizer_that_cannot_write_does_not_stop_the_run(terminal: Terminal, one_thread: None) -> None:
    terminal.write({"run/vis_data": ""})
    outcome = terminal.run(*TINY, "hydra.run.dir=run")
    assert outcome.code == 0
    outcome.says(r"visualizer\.local failed in config .*; training goes on")


def test_a_point_of_a_sweep_that_cannot_write_fails_alone_with_73(terminal: Terminal, one_thread: None) -> None:
    words = ("--multirun", "optim.lr=0.1,0.01", "hydra.sweep.dir=sweep", "hydra.launcher.preload=[]")
    terminal.write({"sweep/lr-0.1/seed.json/x": ""})
    outcome = terminal.run(*TINY, *words)
    assert outcome.code == 73, outcome.message
    outcome.says("1 done, 1 failed", r"exit code 73: cannot write .*lr-0.1/seed\.json: Is a directory")
