"""What a launcher costs: seconds per job of a sweep of trivial jobs, and how full it keeps its slots.

    python benchmarks/launchers.py [--jobs 100] [--launchers basic,local,fresh,submitit_local,joblib]
    python benchmarks/launchers.py --occupancy

All launchers run the same app (tests/launch/toy.py, the project's full configuration, jobs of 1 ms), two jobs at a time
where they know such a limit. joblib needs the package hydra-joblib-launcher. The occupancy is that of 24 jobs of 3 to
18 s on four simulated GPUs, three of them killed and two raising, against list scheduling of the same durations.
"""

from __future__ import annotations

import argparse
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

TOY = Path(__file__).parents[1] / "tests" / "launch" / "toy.py"
LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "local": ["hydra/launcher=local", "hydra.launcher.preload=[]", "hydra.launcher.cpu_slots=2"],
    "fresh": ["hydra/launcher=local", "hydra.launcher.start=fresh", "hydra.launcher.cpu_slots=2"],
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


def overhead(names: list[str], jobs: int) -> None:
    """A row for each launcher."""
    print(f"{'launcher':<16}{'jobs':>6}{'wall s/job':>12}{'CPU s/job':>12}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            seeds = f"randomness.seed=range({jobs})"
            wall, cpu, code = run(Path(folder), *LAUNCHERS[name], seeds, "data.batch_size=1")
            if code:
                print(f"{name:<16} failed: {(Path(folder) / 'output.log').read_text().splitlines()[-1]}")
            else:
                print(f"{name:<16}{jobs:>6}{wall / jobs:>12.3f}{cpu / jobs:>12.3f}", flush=True)


def list_scheduling(seconds: list[float], slots: int) -> float:
    """Time that jobs take when each starts, in order, as soon as a slot is free (Graham 1966)."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def occupancy() -> None:
    """How the local queue uses four GPUs."""
    badly = [KILLED, RAISING, KILLED + 1, RAISING + 1, KILLED + 2]
    well = [round(3000 * seconds) for seconds in SECONDS]
    kinds = [*well[:6], *badly, *well[6:]]
    with tempfile.TemporaryDirectory() as folder:
        points = f"data.batch_size={','.join(map(str, kinds))}"
        *_, code = run(Path(folder), *LAUNCHERS["local"][:2], points, gpus="0,1,2,3")
        sweep = next(Path(folder).glob("outputs/digits/sweep_*"))
        records = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/job.json")}
        times = [json.loads(path.read_text()) for path in sweep.glob("*/times.json")]
    failed = [record["reason"] for record in records.values() if record["state"] == "failed"]
    spans = {gpu: sorted(entry[1:] for entry in times if entry[0] == gpu) for gpu in "0123"}
    shared = sum(late[0] < early[1] for span in spans.values() for early, late in itertools.pairwise(span))
    took = max(end for _, _, end in times) - min(begun for _, begun, _ in times)
    ideal = list_scheduling([0.0 if kind >= KILLED else kind / 1000 for kind in kinds], 4)
    print(f"exit code {code}, {len(times)} results, {len(failed)} failures: {', '.join(sorted(failed))}")
    print(f"slots shared {shared} times; {took:.2f} s against {ideal:.2f} s of list scheduling: {ideal / took:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--occupancy", action="store_true")
    options = parser.parse_args()
    if options.occupancy:
        occupancy()
    else:
        overhead(options.launchers.split(","), options.jobs)


if __name__ == "__main__":
    main()
