"""All benchmarks: python -m benchmarks [--only NAME …] [--quick] [--photos ROOT]

Each one runs in a process of its own, prints its table, and puts it into benchmarks/RESULTS.md in place of its last
one. ROOT holds train/CLASS/*.jpg and val/CLASS/*.jpg, for `folder_decode`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.measure import Section

HERE = Path(__file__).parent
RESULTS, CHANGES = HERE / "RESULTS.md", HERE / "CHANGES.md"
SECTIONS = (
    "engine", "small_data", "folder_decode", "start", "checkpoint_save", "resume", "evaluation", "scaling", "gpu",
    "launchers", "trackers",
)  # fmt: skip
PROGRAMS = ("cli_start", "stress")
"""These print tables of their own, and take arguments: see their files."""
INTRODUCTION = f"""# Benchmarks

Written by `python -m benchmarks`; each section says when and where it was measured. Times are CPU seconds of a process
and its children unless a section says otherwise, since what else a machine does disturbs them least; ratios are between
contenders of the same interleaved rounds. Other tables: {", ".join(f"`benchmarks/{name}.py`" for name in PROGRAMS)}.
"""


def measure(name: str, quick: bool, photos: str | None) -> Section | None:
    """Runs one benchmark; None where there is nothing to run it on."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        return None
    work = getattr(importlib.import_module(f"benchmarks.{name}"), name)
    if name == "folder_decode":
        if photos is None:
            print("folder_decode: needs --photos ROOT; left out")
            return None
        section: Section = work(Path(photos), 3 if quick else 7)
        return section
    section = work(quick)
    return section


def machine() -> str:
    """Where and with what this is measured, in one line."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    cpu = found[1] if found else platform.processor()
    packages = []
    for name in ("torch", "torchvision", "hydra-core", "lightning"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {os.cpu_count()} x {cpu}, {platform.system()}, Python {platform.python_version()}, "
        f"{', '.join(packages)}; load of the machine {load:.1f}"
    )


def write(section: Section, where: str) -> None:
    """Prints the section, and puts it into RESULTS.md."""
    body = f"## {section.title}\n\n{section.markdown()}\n\n*{where}*\n"
    print(body, flush=True)
    parts = re.split(r"^(?=## )", RESULTS.read_text(), flags=re.M)[1:] if RESULTS.exists() else []
    kept = {part.split("\n", 1)[0]: part.rstrip() + "\n" for part in parts}
    kept.pop("## What was changed for speed", None)
    kept[f"## {section.title}"] = body
    RESULTS.write_text("\n".join([INTRODUCTION, *kept.values(), CHANGES.read_text()]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="run these alone")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases")
    parser.add_argument("--photos", help="a folder of JPEG files for folder_decode")
    options = parser.parse_args()
    names = options.only or SECTIONS
    if len(names) == 1:
        where = machine()
        section = measure(names[0], options.quick, options.photos)
        if section is not None:
            write(section, where)
        return
    rest = [*(["--quick"] if options.quick else []), *(["--photos", options.photos] if options.photos else [])]
    failed = [
        name for name in names if subprocess.run([sys.executable, "-m", "benchmarks", "--only", name, *rest]).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
