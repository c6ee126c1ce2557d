"""Damaging what a run, a sweep or a SLURM job has left, file by file, by walking its folders."""

from __future__ import annotations

from pathlib import Path

WAYS = ("emptied", "truncated", "removed")


def left_behind(folder: Path) -> list[Path]:
    """Every file below `folder`, so that those which later come to exist are damaged too."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def is_of_a_checkpoint(path: Path) -> bool:
    """True for what has rules of its own (see test_damage): a damaged checkpoint may be refused with 66."""
    return "checkpoints" in path.parts


def damage(path: Path, way: str) -> None:
    """Do to `path` what a power cut, or a person, does."""
    if way == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if way == "truncated" else 0])
