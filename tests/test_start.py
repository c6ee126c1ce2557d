"""Which run a start goes on with, and what one leaves that did not come to a step: by the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from invocation import Terminal
from omegaconf import OmegaConf

from app.errors import RunError
from app.runs import folder, start

TINY = (
    "data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "schedule.warmup=0",
    "train.max_epochs=2", "hooks.checkpoint.async_save=false",
)  # fmt: skip
"""Four steps an epoch."""
ENDING = """
import os, signal
from app.core.hook import Hook

class Kill(Hook):
    def __init__(self, step=0, point="step_end", signum=9):
        self.step, self.point, self.signum = step, point, signum

    def attach(self, run):
        if self.point == "attach":
            os.kill(os.getpid(), self.signum)

    def step_end(self, run, step):
        if run.state.progress.step == self.step:
            os.kill(os.getpid(), self.signum)
"""
KILL = "hooks.kill._target_=ending.Kill"


@pytest.fixture
def there(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[Terminal]:
    terminal.write({"ending.py": ENDING})
    monkeypatch.setenv("APP_TRUSTED_PACKAGES", "ending")
    yield terminal
    monkeypatch.undo()
    time.tzset()


def killed(there: Terminal, *arguments: str) -> int:
    """The exit status of the command in a process of its own."""
    command = [sys.executable, "-m", "app", *TINY, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(there.folder), *sys.path])}
    return subprocess.run(command, cwd=there.folder, env=environment, capture_output=True).returncode


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_goes_on_with_the_run_that_was_started_last_whatever_the_clock_says(
    there: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = there.folder / "outputs" / "digits"
    monkeypatch.setenv("TZ", "Etc/GMT-14")
    time.tzset()
    assert there.run(*TINY).code == 0
    (first,) = root.glob("2*")
    before = files(first)
    monkeypatch.setenv("TZ", "Etc/GMT+12")
    time.tzset()
    assert killed(there, KILL, "hooks.kill.step=6") == -signal.SIGKILL
    second = next(path for path in root.glob("2*") if path != first)
    assert second.name < first.name, "by its name it is the older one"
    assert (root / "latest").resolve() == second

    resumed = there.run(*TINY, "resume=true")
    resumed.says(rf"resuming from .*{second.name}/checkpoints/epoch_1.pth", "done at epoch 2, step 8")
    assert files(first) == before

    assert killed(there, KILL, "hooks.kill.step=2") == -signal.SIGKILL
    (third,) = (path for path in root.glob("2*") if path not in (first, second))
    again = there.run(*TINY, "resume=true")
    again.says(rf"the last run, .*{third.name}, has no checkpoint.* Going on with .*{second.name}", "already finished")
    assert not folder.has_checkpoint(third)
    tested = there.run(*TINY, "resume=true", "mode=test")
    tested.says(rf"the last run, .*{third.name}, has no checkpoint.* Going on with .*{second.name}")
    assert files(first) == before


def test_a_run_that_is_resumed_is_the_newest_from_then_on(there: Terminal) -> None:
    root = there.folder / "outputs" / "digits"
    assert there.run(*TINY).code == 0
    (first,) = root.glob("2*")
    assert there.run(*TINY).code == 0
    (second,) = (path for path in root.glob("2*") if path != first)
    assert folder.newest_run(root) == second
    there.run(*TINY, f"hydra.run.dir={first}", "resume=true").says("already finished")
    assert folder.newest_run(root) == second, "no step was done"
    there.run(*TINY, f"hydra.run.dir={first}", "resume=true", "train.max_epochs=3").says("done at epoch 3")
    assert folder.newest_run(root) == first
    assert (root / "latest").resolve() == first


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("load_from=torn.pth",), 66),
        (("model.num_classes=3",), 64),
        (("data.limit_val=0", "+hooks.mine._target_=ending.Missing"), 64),
        ((KILL, "hooks.kill.point=attach", "hooks.kill.signum=2", "hooks.preempt=null"), 130),
    ],
)
def test_a_start_without_a_step_leaves_no_folder_and_moves_nothing(
    there: Terminal, words: tuple[str, ...], code: int
) -> None:
    there.write({"torn.pth": b"PK\x03\x04"})
    assert there.run(*TINY, "name=new", *words).code == code
    assert not (there.folder / "outputs" / "new").exists()
    assert there.run(*TINY).code == 0
    latest = (there.folder / "outputs" / "digits" / "latest").resolve()
    before = sorted(latest.parent.iterdir())
    assert there.run(*TINY, *words).code == code
    assert sorted(latest.parent.iterdir()) == before
    assert (latest.parent / "latest").resolve() == latest


def test_sigterm_before_the_first_step_leaves_nothing(there: Terminal) -> None:
    status = killed(there, KILL, "hooks.kill.point=attach", "hooks.kill.signum=15", "hooks.preempt=null")
    assert status == 128 + signal.SIGTERM
    assert not (there.folder / "outputs").exists()


def test_what_somebody_else_put_into_the_folder_stays(tmp_path: Path) -> None:
    def refused() -> Path:
        run = Path(OmegaConf.create({"dir": f"${{run_folder:{tmp_path},x,train,false,false,null}}"}).dir)
        (run / folder.SEED).write_text("{}")
        (run / "notes.txt").write_text("mine")
        raise RunError(str(run))

    with pytest.raises(RunError) as raised, folder.removed_if_unused():
        refused()
    run = Path(str(raised.value))
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_run_killed_before_its_record_is_concluded_by_the_next_start(there: Terminal) -> None:
    assert there.run(*TINY, "hydra.run.dir=run").code == 0
    run = there.folder / "run"
    done = json.loads((run / folder.DONE).read_text())
    (run / folder.DONE).unlink()
    before = (run / "vis_data" / "scalars.jsonl").read_bytes()
    there.run(*TINY, "hydra.run.dir=run", "resume=true").says("already finished at epoch 2", "next: python -m app")
    again = json.loads((run / folder.DONE).read_text())
    assert {**again, "seconds": 0} == {**done, "seconds": 0}
    assert (run / "vis_data" / "scalars.jsonl").read_bytes() == before
    assert there.run(*TINY, "hydra.run.dir=run", "resume=true").code == 0
    assert json.loads((run / folder.DONE).read_text()) == again, "once is enough"


def test_a_run_that_goes_on_is_not_complete_meanwhile(there: Terminal) -> None:
    assert there.run(*TINY, "hydra.run.dir=run").code == 0
    more = ("hydra.run.dir=run", "resume=true", "train.max_epochs=4", KILL, "hooks.kill.step=10")
    assert killed(there, *more) == -signal.SIGKILL
    assert not (there.folder / "run" / folder.DONE).exists()


def test_starts_are_in_order_also_where_a_number_is_lost(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("c", "a", "d", "b")]
    for run in runs:
        run.mkdir()
        start.record(run)
    assert start.in_order(reversed(runs)) == runs
    (runs[2] / start.START).write_bytes(b"")
    assert start.in_order(runs) == [tmp_path / name for name in ("c", "a", "b", "d")], "behind all with lesser names"
    (tmp_path / "e").mkdir()
    start.record(tmp_path / "e")
    assert start.in_order([*runs, tmp_path / "e"])[-1] == tmp_path / "e"


def test_runs_without_a_number_are_placed_by_their_names(tmp_path: Path) -> None:
    for name in ("2026-01-01", "2026-01-02", "2025-12-31"):
        (tmp_path / name).mkdir()
    start.record(tmp_path / "2025-12-31")
    order = [path.name for path in start.in_order(tmp_path.glob("2*"))]
    assert order == ["2025-12-31", "2026-01-01", "2026-01-02"]


def test_two_starts_at_once_get_two_numbers(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from app.runs import start; start.record(Path(sys.argv[1]))"
    runs = [tmp_path / str(index) for index in range(8)]
    for run in runs:
        run.mkdir()
    racing = [subprocess.Popen([sys.executable, "-c", code, str(run)]) for run in runs]
    assert [process.wait() for process in racing] == [0] * 8
    assert sorted(start.number(run) or 0 for run in runs) == list(range(1, 9))
