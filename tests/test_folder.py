import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import RunError
from app.files import write_json
from app.runs import folder, start


def make_run(root: Path, name: str, *steps: int) -> Path:
    run = root / name
    (run / ".hydra" / "1").mkdir(parents=True)
    (run / folder.CHECKPOINTS).mkdir()
    for step in steps:
        (run / folder.CHECKPOINTS / f"iter_{step}.json").write_text(json.dumps({"step": step}))
        (run / folder.CHECKPOINTS / f"iter_{step}.pth").write_text("")
    return run


def choose(root: Path, resume: bool | str = False, load_from: str | None = None, mode: str = "train") -> Path:
    return folder.choose(str(root), "x", mode, False, resume, load_from)


def test_fresh_runs_never_share_a_folder(tmp_path: Path) -> None:
    assert len({choose(tmp_path) for _ in range(5)}) == 5


def test_resume_takes_the_newest_run_by_name_that_has_a_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "x"
    older = make_run(root, "2026-01-01_00-00-00", 5)
    newer = make_run(root, "2026-01-02_00-00-00", 3)
    make_run(root, "2026-01-03_00-00-00")
    make_run(root, "2026-01-04_00-00-00_test", 9)
    os.utime(older)
    assert choose(tmp_path, resume=True) == newer
    assert choose(tmp_path, resume="auto") == newer
    assert choose(tmp_path, resume=False) not in (older, newer)
    assert choose(tmp_path, resume=True, mode="test") not in (older, newer)


def test_resume_without_any_checkpoint_goes_on_in_the_newest_run(tmp_path: Path) -> None:
    newest = make_run(tmp_path / "x", "2026-01-03_00-00-00")
    assert choose(tmp_path, resume=True) == newest


def test_a_named_checkpoint_continues_in_place_only_when_it_is_the_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", "2026-01-01_00-00-00", 3, 5)
    checkpoints = run / folder.CHECKPOINTS
    assert choose(tmp_path, resume=str(checkpoints / "iter_5.pth")) == run
    assert choose(tmp_path, resume=True, load_from=str(checkpoints / "iter_5.pth")) == run
    assert choose(tmp_path, resume=str(checkpoints / "iter_3.pth")) != run


def test_a_requeued_job_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not folder.wants_resume(False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert folder.wants_resume(False)


def test_a_job_started_again_goes_on_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in another run's: it may have died before its first checkpoint, and others may have started since."""
    root = tmp_path / "x"
    make_run(root, "2026-01-01_00-00-00", 5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    own = make_run(root, "2026-01-02_00-00-00")
    write_json(own / folder.ENVIRONMENT, {"job": start.job_id()})
    make_run(root, "2026-01-03_00-00-00", 5)
    named = str(root / "2026-01-01_00-00-00" / folder.CHECKPOINTS / "iter_5.pth")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for resume in (False, True, "auto", named):
        assert choose(tmp_path, resume=resume) == own
    monkeypatch.setattr(sys, "argv", [*sys.argv, "optim.lr=0.1"])  # another command of the same job
    assert not folder.has_checkpoint(choose(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not folder.has_checkpoint(choose(tmp_path))


def test_checkpoints_elsewhere_are_found_from_the_run_folder(tmp_path: Path) -> None:
    run, elsewhere = make_run(tmp_path / "x", "2026-01-01_00-00-00"), tmp_path / "elsewhere"
    (run / folder.CHECKPOINTS).rmdir()
    folder.link_checkpoints(run, elsewhere)
    make_run(tmp_path / "x", "2026-01-02_00-00-00")
    assert not folder.has_checkpoint(run)
    elsewhere.mkdir()
    (elsewhere / "iter_1.json").write_text("{}")
    assert choose(tmp_path, resume=True) == run
    folder.link_checkpoints(run, tmp_path / "changed")
    assert folder.has_checkpoint(run)
    own = make_run(tmp_path / "x", "2026-01-03_00-00-00", 3)
    folder.link_checkpoints(own, elsewhere)
    assert not (own / folder.CHECKPOINTS).is_symlink()


def test_a_held_folder_names_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from app.runs import folder\n"
        "with folder.held(Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunError, match=f"in use by process {holder.pid} on ") as raised, folder.held(tmp_path):
            pass
        assert raised.value.exit_code == 75
        holder.kill()
    with folder.held(tmp_path):
        pass


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(RunError, match=r"cannot make the run folder|is a file") as raised:
        choose(tmp_path)
    assert raised.value.exit_code == 73


def test_latest_follows_the_run_that_did_a_step_last(tmp_path: Path) -> None:
    for name in ("2026-01-02_00-00-00", "2026-01-01_00-00-00"):
        (tmp_path / name).mkdir()
        folder.count_start(tmp_path / name)
    assert (tmp_path / "latest").resolve() == tmp_path / "2026-01-01_00-00-00"
