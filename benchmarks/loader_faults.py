"""Loader workers that are stopped, killed, or killed while a batch is on its way: how the command ends.

    python benchmarks/loader_faults.py [--times 20] [--timeout 2] [--places training evaluation]

Each run is the real command with two workers, in a process forked from one that has torch imported already. It must end
by itself with one message that names the worker, and with exit code 65. Prints a table; exits 1 where a run did not.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from app import cli

DATA = '''
import multiprocessing, os, random, signal, threading
import torch


class Trapped:
    """Digits of noise; one worker is stopped or killed at, or some moment after, a sample of one part."""

    classes = ["a", "b"]

    def __init__(self, split, phase, fault):
        self.fault = fault if split == phase or (split, phase) == ("train", "precise_bn") else None
        self.first = 3 if phase == "precise_bn" else 1  # the third and fourth worker are those of precise_bn
        self.at = random.Random(os.getpid()).randrange(40, 200)

    def __len__(self):
        return 256

    def __getitem__(self, index):
        started = (multiprocessing.current_process()._identity or (0,))[0]
        if self.fault is not None and index == self.at and started >= self.first:
            name, _, later = self.fault.partition("_")
            number = signal.SIGSTOP if name == "stop" else signal.SIGKILL
            if later:
                threading.Timer(random.random() * 0.02, os.kill, (os.getpid(), number)).start()
            else:
                os.kill(os.getpid(), number)
        return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), index % 2


def data(split, phase, fault):
    return Trapped(split, phase, fault)
'''
PLACES: dict[str, list[str]] = {
    "training": ["+data.phase=train"],
    "evaluation": ["+data.phase=val"],
    "precise_bn": ["+data.phase=precise_bn", "hooks=[default,precise_bn]"],
    "reading into memory": ["+data.phase=train", "data.in_memory=true"],
}
FAULTS = ("stop", "kill", "stop_later", "kill_later")
LIMIT_SECONDS = 120.0
"""Far more than a run takes whose worker answers no more, on a busy machine too."""


def run(folder: Path, place: str, fault: str, timeout: float) -> tuple[str, float]:
    """Runs the command once; gives back how it ended, and the seconds that it took."""
    log = folder / "output.txt"
    arguments = [
        *("data=custom", "data._target_=trapped.data", f"+data.fault={fault}", f"data.timeout={timeout}"),
        *("data.num_workers=2", "data.batch_size=16", "data.eval_batch_size=16", "model=small_cnn"),
        *("env.device=cpu", "train.max_epochs=3", "logging.progress=false", f"output_root={folder}/outputs"),
        *(PLACES[place]),
    ]
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.argv = ["app", *arguments]
        torch.set_num_threads(1)
        code = cli.entry()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() - begin > timeout + LIMIT_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "HANGS", time.monotonic() - begin
        time.sleep(0.02)
    return judged(os.waitstatus_to_exitcode(ended[1]), log.read_text(), fault), time.monotonic() - begin


def judged(code: int, text: str, fault: str) -> str:
    """`ok`, or what is wrong with how the command ended."""
    said = "no answer for" if fault.startswith("stop") else "died"
    if code != 65 or "Traceback" in text or not re.search(rf"error: data: loader worker \d .*{said}", text):
        return f"code {code}: {text.strip().splitlines()[-1][:150]}"
    return "ok"


def main() -> int:
    """Runs all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--places", nargs="*", default=list(PLACES), choices=PLACES)
    options = parser.parse_args()
    wrong = 0
    print("| where | what happens to a worker | runs | ended with 65 and the message | slowest, s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trapped.py").write_text(DATA)
        for place in options.places:
            for fault in FAULTS:
                found = [run(folder, place, fault, options.timeout) for _ in range(options.times)]
                ends = Counter(end for end, _ in found)
                wrong += len(found) - ends["ok"]
                print(f"| {place} | {fault} | {len(found)} | {ends.pop('ok', 0)} | {max(s for _, s in found):.1f} |")
                for end, times in ends.items():
                    print(f"  {times} x {end}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
