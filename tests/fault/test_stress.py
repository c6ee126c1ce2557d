"""F1, F8 in short: interrupted at random moments, resumed, equal to a straight run; in full: benchmarks/stress.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[2] / "benchmarks" / "stress.py"


@pytest.mark.parametrize(("path", "signal"), [("loader-2", "KILL"), ("memory", "TERM"), ("loader-0", "INT")])
def test_interrupted_equals_straight(tmp_path: Path, path: str, signal: str) -> None:
    command = [sys.executable, STRESS, "--folder", tmp_path, "--paths", path, "--signals", signal]
    command += ["--kills", "3", "--epochs", "5", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert row[:3] == [path, f"SIG{signal}", "3"]
    assert row[6] == "yes"
    assert row[5] in ("", "0")  # no step is repeated after a signal that can be caught
