"""Nothing that a sweep or its jobs leave may stop a launcher: every file emptied, cut, replaced, and removed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another JSON": lambda path: path.write_text("[1]"),
    "a JSON of nothing": lambda path: path.write_text("{}"),
    "removed": Path.unlink,
}
SWEEP = ["data.batch_size=1,2", "randomness.seed=3"]


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def again(toy) -> tuple[int, str]:
    """The same sweep once more, and its report."""
    code, output = toy.run(*SWEEP, "resume=true")
    report = [sys.executable, "-m", "app.report", str(toy.sweeps[-1])]
    ended = subprocess.run(report, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return code, output + ended.stdout + ended.stderr


@pytest.mark.parametrize("kind", DAMAGE)
def test_all_files_of_a_sweep_are_damaged(toy, kind: str) -> None:
    toy.run(*SWEEP)
    (sweep,) = toy.sweeps
    for path in files(sweep):
        DAMAGE[kind](path)
    code, output = again(toy)
    assert code == 0, output
    assert "Traceback" not in output
    assert toy.count("DONE.json") in (2, 4), "gone on with or, where nothing tells what it was, done anew"
    assert toy.records("DONE.json").keys() == {"batch_size-1", "batch_size-2"}


@pytest.mark.slow
def test_each_file_of_a_sweep_is_damaged(toy, tmp_path: Path) -> None:
    toy.run(*SWEEP)
    (sweep,) = toy.sweeps
    kept = tmp_path / "kept"
    shutil.copytree(sweep, kept)
    for name in [path.relative_to(kept) for path in files(kept)]:
        for kind, damage in DAMAGE.items():
            shutil.rmtree(sweep)
            shutil.copytree(kept, sweep)
            damage(sweep / name)
            code, output = again(toy)
            assert code == 0, f"{name} {kind}: {output}"
            assert "Traceback" not in output, f"{name} {kind}: {output}"
            assert len(toy.sweeps) == 1, f"{name} {kind}"


def test_a_sweep_of_which_nothing_was_saved_is_not_gone_on_with(toy) -> None:
    toy.run(*SWEEP)
    empty = toy.sweeps[0].with_name("sweep_9999-01-01_00-00-00")
    empty.mkdir()
    shutil.copy(toy.sweeps[0] / "sweep.json", empty)
    code, output = toy.run(*SWEEP, "resume=true")
    assert code == 0, output
    assert f"{empty.relative_to(toy.folder)} was stopped before its first job had saved; going on with" in output
    assert "2 done before" in output


def test_a_result_that_is_being_written_is_not_read(toy) -> None:
    """A job that ends while its result is torn is done, with the value of its DONE.json."""
    toy.environment["TOY_TORN_RESULT"] = "1"
    code, output = toy.run(*SWEEP)
    assert code == 0, output
    assert {record["state"] for record in toy.records().values()} == {"done"}
    assert output.count("done in") == output.count(", 0.25") == 2, output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs mount")
def test_a_full_disk_in_the_middle_of_a_sweep(toy, tmp_path: Path) -> None:
    """The points that find it full fail with 74; the same command goes on once there is room."""
    disk = tmp_path / "outputs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
    try:
        toy.environment["TOY_FILLS"] = str(disk / "filling")
        sweep = ["data.batch_size=1,2,3,4,5,6", "randomness.seed=3"]
        code, output = toy.run(*sweep, gpus="0")
        assert code != 0
        assert "6 jobs on 1 slots" in output
        failed = {name: record["exit_code"] for name, record in toy.records().items() if record["state"] == "failed"}
        assert "sweep: 1 done, 5 failed" in output, output
        assert output.count("exit code 74") >= 5, failed
        assert "No space left on device" in output
        assert "bytes" in output
        assert "Traceback" not in output.partition("Error executing job")[0], "but for that of hydra.main itself"

        (disk / "filling").unlink()
        del toy.environment["TOY_FILLS"]
        code, output = toy.run(*sweep, "resume=true", gpus="0")
        assert code == 0, output
        assert "1 done before" in output
    finally:
        subprocess.run(["umount", disk], check=True)
