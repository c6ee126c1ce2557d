"""The rank of this process, as its launcher says; nothing else reads those variables. Imports no torch.

torchrun's variables come first. SLURM's count only inside a step of several tasks: a batch script of `sbatch -n 4` also
has SLURM_NTASKS=4, but is one process (https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

SLURM_PORTS = range(20_000, 32_000)
"""Below the range that Linux hands out on its own."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` processes of a run; `local_rank` of `local_size` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    master_addr: str | None = None
    master_port: int | None = None

    def variables(self) -> dict[str, str]:
        """Return the variables that torchrun would set for this process."""
        values = {"RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": self.local_rank}
        values |= {"LOCAL_WORLD_SIZE": self.local_size}
        named = {"MASTER_ADDR": self.master_addr, "MASTER_PORT": self.master_port}
        return {key: str(value) for key, value in (values | named).items() if value is not None}


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """Read this process's rank; rank 0 of 1 when it is alone."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = int(environment["WORLD_SIZE"])
        port = environment.get("MASTER_PORT")
        return Rank(
            rank=int(environment["RANK"]),
            size=size,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", str(size))),
            master_addr=environment.get("MASTER_ADDR"),
            master_port=None if port is None else int(port),
        )
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not _in_terminal():
        return _slurm_rank(environment)
    return Rank()


def adopt(launcher: str = "auto") -> Rank:
    """Find this process's rank and set torchrun's variables to it, which libraries and child processes read.

    With `launcher` none it is alone whatever the variables say, and they are removed.
    """
    if launcher == "none":
        for name in (*Rank(master_addr="", master_port=0).variables(), "SLURM_STEP_NUM_TASKS"):
            os.environ.pop(name, None)
    rank = find_rank()
    if rank.size > 1:
        os.environ |= rank.variables()
    return rank


def _slurm_rank(environment: Mapping[str, str]) -> Rank:
    node = int(environment["SLURM_NODEID"])
    nodes = int(environment["SLURM_STEP_NUM_NODES"])
    # The same on all tasks of a step and after a requeue; another for each step of a job, and for each job.
    drawn = int(environment["SLURM_JOB_ID"]) + 101 * int(environment["SLURM_STEP_ID"])
    # A single node needs no name, which might not resolve.
    address = "127.0.0.1" if nodes == 1 else first_host(environment["SLURM_STEP_NODELIST"])
    return Rank(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node],
        master_addr=environment.get("MASTER_ADDR", address),
        master_port=int(environment.get("MASTER_PORT", SLURM_PORTS[drawn % len(SLURM_PORTS)])),
    )


def _in_terminal() -> bool:
    """Return whether this process belongs to a terminal, as in a shell of `srun --pty`; tasks of a step have none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def first_host(nodes: str) -> str:
    """`gpu[03-07,12],login1` -> `gpu03`: the node of rank 0, in SLURM's compressed list."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    assert match is not None, nodes
    return "".join(part or "" for part in match.groups())


def tasks_per_node(counts: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    parts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in counts.split(","))
    return [int(match[1]) for match in parts if match for _ in range(int(match[2] or 1))]
