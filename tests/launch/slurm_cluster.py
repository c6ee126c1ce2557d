"""A real SLURM of two nodes on this host, from Debian's packages: slurmctld, slurmd, slurm-client and munge.

    cluster = Cluster(folder); cluster.start(); …; cluster.stop()

Everything lives in `folder`. As root the nodes have two simulated GPUs each; without root they have none.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SBIN = "/usr/sbin:/sbin"

CONFIG = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=5
SlurmdTimeout=15
JobRequeue=1
MaxArraySize={max_array_size}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{gres}
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs={cores} RealMemory=2000 {gpus} State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""  # noqa: E501 - slurm.conf knows no other continuation that is as plain


def missing() -> list[str]:
    """Commands that are not installed."""
    return [command for command in NEEDED if _which(command) is None]


def _which(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{SBIN}")


class Cluster:
    """Starts the daemons, and stops exactly those."""

    def __init__(self, folder: Path, max_array_size: int = 1001) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.root = os.geteuid() == 0
        self.ports = _three_free_ports()
        self.max_array_size = max_array_size
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Returns when both nodes are idle."""
        for name in ("state", "log", "dev"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        self._write_config()
        force = ["--force"] if self.root else []
        paths = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / path}" for name, path in paths.items()]
        self._daemon("munged", *force, *options, f"--log-file={self.folder / 'log' / 'munged.log'}")
        self._daemon("slurmctld", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_for_idle()

    def start_node(self, node: str) -> None:
        """Starts the slurmd of one node."""
        self._daemon("slurmd", "-N", node)

    def wait_for_idle(self, nodes: int = 2, timeout_seconds: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while self.run("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "debug").strip() != str(nodes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"SLURM did not come up: {(self.folder / 'log' / 'slurmctld.log').read_text()}")
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """Output of a SLURM command."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    def kill_node(self, node: str) -> None:
        """A node failure: slurmd, its step daemons and all their processes, at once."""
        pid = int((self.folder / f"slurmd_{node}.pid").read_text())
        for victim in [pid, *_descendants(pid), *self._step_processes(node)]:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    def stop(self) -> None:
        """Cancels the jobs and ends the daemons that `start` started."""
        self.run("scancel", "-u", self.user)
        deadline = time.monotonic() + 10
        while self.run("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in ("slurmd_n1.pid", "slurmd_n2.pid", "slurmctld.pid", "munged.pid"):
            with suppress(OSError, ValueError):
                os.kill(int((self.folder / name).read_text()), signal.SIGTERM)

    def _write_config(self) -> None:
        gres, gpus = "", ""
        if self.root:
            for number in range(2):
                subprocess.run(["mknod", self.folder / "dev" / f"nvidia{number}", "c", "1", "3"], check=True)
            (self.folder / "gres.conf").write_text(
                f"NodeName=n[1-2] Name=gpu Flags=nvidia_gpu_env File={self.folder}/dev/nvidia[0-1]\n"
            )
            gres, gpus = "GresTypes=gpu", "Gres=gpu:2"
        values = {"host": socket.gethostname().split(".")[0], "user": self.user, "folder": self.folder}
        values |= {"ports": self.ports, "cores": os.cpu_count(), "gres": gres, "gpus": gpus}
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values, max_array_size=self.max_array_size))

    def _daemon(self, command: str, *arguments: str) -> None:
        config = [] if command == "munged" else ["-f", str(self.folder / "slurm.conf")]
        path = _which(command)
        assert path is not None
        subprocess.run([path, *config, *arguments], check=True, env={**os.environ, **self.environment})

    def _step_processes(self, node: str) -> list[int]:
        """What runs on a node, and the step daemons that started it; they have left slurmd's process tree."""
        found: set[int] = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (entry / "environ").read_bytes()
                here = f"SLURMD_NODENAME={node}\0".encode() in environment and str(self.folder).encode() in environment
                if here:
                    parent = _parent(int(entry.name))
                    daemon = b"slurmstepd" in (Path("/proc") / str(parent) / "cmdline").read_bytes()
                    found |= {int(entry.name), parent} if daemon else {int(entry.name)}
        return sorted(found)


def _parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])


def _descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            if _parent(int(entry.name)) == pid:
                found += [int(entry.name), *_descendants(int(entry.name))]
    return found


def _three_free_ports() -> tuple[int, int, int]:
    """A free port, and two neighbouring ones."""

    def is_free(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    base = 17_000 + os.getpid() % 4_000
    port = next(port for port in range(base, base + 3_000, 3) if all(map(is_free, range(port, port + 3))))
    return port, port + 1, port + 2
