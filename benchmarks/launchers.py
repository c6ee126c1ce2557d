"""What a launcher costs: seconds per job of a sweep of trivial jobs, and how full it keeps its slots.

All launchers run the same app: tests/launch/toy.py, with the project's full configuration. Those of others are in the
extra `peers`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Section

TOY = Path(__file__).parents[1] / "tests" / "launch" / "toy.py"
LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "local": ["hydra/launcher=local", "hydra.launcher.preload=[]", "hydra.launcher.cpu_slots=2"],
    "local, start=fresh": ["hydra/launcher=local", "hydra.launcher.start=fresh", "hydra.launcher.cpu_slots=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}
SECONDS = [3.6, 1.2, 2.7, 1.0, 5.9, 1.8, 1.1, 2.4, 3.2, 1.4, 2.0, 4.1, 3.8, 1.6, 2.6, 1.3, 3.0, 5.1, 2.2]
KILLED, RAISING = 100_000, 200_000


def run(folder: Path, *arguments: str, gpus: str = "") -> tuple[float, float, int]:
    """Wall seconds, CPU seconds of all processes, exit code of one sweep."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOY), "--multirun", *arguments]
    with (folder / "output.log").open("w") as output:
        ended = subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu, ended.returncode


def overhead(name: str, jobs: int) -> tuple[str, str, str]:
    """A launcher's row: its name, wall and CPU seconds per job."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu, code = run(Path(folder), *LAUNCHERS[name], f"randomness.seed=range({jobs})", "data.batch_size=1")
        if code:
            said = (Path(folder) / "output.log").read_text().splitlines()
            print(f"{name} failed: {said[-1] if said else code}")
            return name, "not obtained", "not obtained"
    return name, f"{wall / jobs:.3f}", f"{cpu / jobs:.3f}"


def list_scheduling(seconds: list[float], slots: int) -> float:
    """Time that jobs take when each starts, in order, as soon as a slot is free (Graham 1966)."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def occupancy(milliseconds: int) -> str:
    """How the local queue uses four GPUs; `milliseconds` stand for each of SECONDS' seconds."""
    badly = [KILLED, RAISING, KILLED + 1, RAISING + 1, KILLED + 2]
    well = [round(milliseconds * seconds) for seconds in SECONDS]
    kinds = [*well[:6], *badly, *well[6:]]
    with tempfile.TemporaryDirectory() as folder:
        points = f"data.batch_size={','.join(map(str, kinds))}"
        run(Path(folder), *LAUNCHERS["local"][:2], points, gpus="0,1,2,3")
        sweep = next(Path(folder).glob("outputs/digits/sweep_*"))
        records = [json.loads(path.read_text()) for path in sweep.glob("*/job.json")]
        times = [json.loads(path.read_text()) for path in sweep.glob("*/times.json")]
    failed = sum(record["state"] == "failed" for record in records)
    spans = {gpu: sorted(entry[1:] for entry in times if entry[0] == gpu) for gpu in "0123"}
    shared = sum(late[0] < early[1] for span in spans.values() for early, late in itertools.pairwise(span))
    took = max(end for _, _, end in times) - min(begun for _, begun, _ in times)
    ideal = list_scheduling([0.0 if kind >= KILLED else kind / 1000 for kind in kinds], 4)
    return (
        f"24 jobs of {min(well) / 1000:.1f} to {max(well) / 1000:.1f} s on four simulated GPUs, three killed and two "
        f"raising: {len(times)} results, {failed} failures, a slot shared {shared} times; {took:.2f} s against "
        f"{ideal:.2f} s of list scheduling (Graham 1966): occupancy {ideal / took:.1%}. Goal: >= 95 %."
    )


def launchers(quick: bool = False) -> Section:
    """A row for each launcher, and the occupancy of ours."""
    jobs = 10 if quick else 100
    section = Section(
        "Launchers",
        f"Seconds per job of a sweep of {jobs} jobs of 1 ms, the launcher's own start included: `local` (forks of one "
        "warm process) and `local, start=fresh` are this project's, the others Hydra's; two jobs at a time where a "
        "launcher knows such a limit (submitit_local starts all at once). No job imports torch; where each has an "
        "interpreter of its own (start=fresh, submitit_local) that costs another `import torch` per job (see Start).",
        ("launcher", "wall s/job", "CPU s/job"),
    )
    section.rows = [overhead(name, jobs) for name in LAUNCHERS]
    section.notes = [occupancy(300 if quick else 3000)]
    return section
