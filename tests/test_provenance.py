"""What a run says about where it came from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from app.runs import provenance


def test_no_variable_makes_git_run_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hydra.job.env_set` of a settings file sets any of them, before the job starts."""
    expected = provenance.git_state()
    mark = tmp_path / "mark"
    evil = tmp_path / "git"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\n")
    evil.chmod(0o755)
    (tmp_path / ".gitconfig").write_text(f"[core]\n\tfsmonitor = {evil}\n[diff]\n\texternal = {evil}\n")
    for name, value in {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GIT_EXTERNAL_DIFF": str(evil),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": str(evil),
        "GIT_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    assert provenance.git_state() == expected
    assert not mark.exists()


def test_a_repository_own_diff_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    for words in (["init", "-q"], ["config", "diff.external", f"touch {mark}"], ["config", "core.fsmonitor", "false"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "a").write_bytes(b"\xff\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", str(tmp_path), "add", "a"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "x"], check=True)
    (tmp_path / "a").write_bytes(b"\xfe\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    commit, diff = provenance.git_state()
    assert commit is not None
    assert len(commit) == 40
    assert "+\ufffd" in diff, "bytes that are no UTF-8 do not end a run"
    assert not mark.exists()
