"""CPU time of the commands that a person waits for, against a Hydra app with a single key.

python benchmarks/cli_start.py [ROUNDS]: the least of ROUNDS runs each, interleaved.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

BARE = """
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    pass

main()
"""


def cpu_seconds(command: list[str], folder: Path, line: str) -> float:
    """User and system time of one command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=os.environ | {"COMP_LINE": line}, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bare.py").write_text(BARE)
        (folder / "conf").mkdir()
        (folder / "conf" / "config.yaml").write_text("key: 1\n")
        bare, app = [sys.executable, "bare.py"], [sys.executable, "-m", "app"]
        cases = {
            "--help": (["--help"], "", ""),
            "--cfg job": (["--cfg", "job"], "", ""),
            "--cfg job --resolve": (["--cfg", "job", "--resolve"], "", ""),
            "completion": (["-sc", "query=bash"], "python bare.py ke", "python -m app hooks.checkpoint.in"),
        }
        print(f"{'command':<22}{'bare Hydra, s':>15}{'app, s':>10}{'ratio':>8}")
        for title, (arguments, bare_line, app_line) in cases.items():
            times = [
                (cpu_seconds([*bare, *arguments], folder, bare_line), cpu_seconds([*app, *arguments], folder, app_line))
                for _ in range(rounds)
            ]
            reference, ours = (min(column) for column in zip(*times, strict=True))
            print(f"{title:<22}{reference:>15.2f}{ours:>10.2f}{ours / reference:>8.2f}")


if __name__ == "__main__":
    main()
