from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import RunApp
from tiny_run import tiny_run, train

from app.checkpoint import contents
from app.checkpoint.contents import nonfinite
from app.checkpoint.directory import CheckpointDir
from app.checkpoint.recovery import newest_intact
from app.config.schema.hooks import CheckpointConf
from app.core.hook import Hook
from app.core.state import Run
from app.errors import ConfigError
from app.hooks.checkpoint import Checkpoint

CONFIG: dict[str, Any] = {
    "mode": "train",
    "metrics": {"topk": [1], "average": ["macro"], "monitor": "auto", "extra": {}},
    "hooks": {},
}


class Quiet:
    """A visualizer that counts its flushes."""

    flushed = 0

    def flush(self) -> None:
        self.flushed += 1

    def sync(self) -> None:
        pass


class Scores(Hook):
    """Puts the given values in the place of val/top1, one each validation, before the checkpoint hook sees it."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        metrics["val/top1"] = next(self.values)


def a_run(folder: Path, **fields: Any) -> Run:
    return tiny_run(folder, **({"config": CONFIG, "visualizer": Quiet()} | fields))


def saved(folder: Path) -> list[str]:
    """The names of the complete checkpoints."""
    return sorted(each.name for each in CheckpointDir(folder / "checkpoints").manifests())


def trained(folder: Path, hook: Checkpoint, *others: Hook, **fields: Any) -> Run:
    """A run to its end with `hook`, as app.job drives it."""
    run = a_run(folder, **fields)
    hook.priority = "VERY_LOW"
    hooks = {f"other{index}": other for index, other in enumerate(others)} | {"checkpoint": hook}
    train(run, hooks)
    for each in hooks.values():
        each.finish(run, None)
    return run


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "every epoch": ({}, ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]),
    "every second, and the last": ({"interval": 2}, ["epoch_2.pth", "epoch_3.pth"]),
    "without the last": ({"interval": 2, "save_last": False}, ["epoch_2.pth"]),
    "from the third": ({"save_begin": 3}, ["epoch_3.pth"]),
    "keep one": ({"max_keep_ckpts": 1}, ["epoch_3.pth"]),
    "keep two": ({"max_keep_ckpts": 2}, ["epoch_2.pth", "epoch_3.pth"]),
    "keep 0 is all": ({"max_keep_ckpts": 0}, ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]),
    "iterations": ({"by_epoch": False, "interval": 4}, ["iter_4.pth", "iter_8.pth", "iter_9.pth"]),
    "file name": ({"filename": "net-{}.pth", "interval": 3}, ["net-3.pth"]),
    "none ever": ({"interval": -1, "every_minutes": 1e-9, "save_best": "loss"}, []),
    "minutes": ({"interval": 100, "every_minutes": 1e-9}, [*(f"iter_{step}.pth" for step in (1, 2, 4, 5, 7, 8)),
                                                          "epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "names"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("async_save", [True, False], ids=["async", "sync"])
def test_what_is_saved(tmp_path: Path, arguments: dict[str, Any], names: list[str], async_save: bool) -> None:
    run = trained(tmp_path, Checkpoint(**arguments, async_save=async_save))
    assert saved(tmp_path) == sorted(names)
    if arguments.get("interval") == -1:
        assert not (tmp_path / "checkpoints").exists()
    else:
        assert not list((tmp_path / "checkpoints").glob(".*"))
        assert run.visualizer.flushed >= len(names)  # type: ignore[attr-defined]


def test_the_best_is_kept_and_can_be_resumed_from(tmp_path: Path) -> None:
    hook = Checkpoint(save_best="auto", max_keep_ckpts=1)
    trained(tmp_path, hook, Scores(0.1, 0.9, 0.9))
    assert saved(tmp_path) == ["best_top1_epoch_2.pth", "epoch_3.pth"]
    state = contents.load(tmp_path / "checkpoints" / "best.pth")
    assert state["progress"]["epoch"] == 2
    assert state["hooks"]["checkpoint"]["best"] == {"val/top1": {"value": 0.9, "step": 6}}
    again = a_run(tmp_path / "again", length=4)
    again.hooks = {"checkpoint": Checkpoint(save_best="auto"), "other0": Scores()}
    assert contents.restore(again, state) == []
    assert again.state.progress.step == 6


def test_best_off_schedule_is_written_once_and_does_not_disturb_the_interval(tmp_path: Path) -> None:
    trained(tmp_path, Checkpoint(interval=3, save_best="top1"), Scores(0.1, 0.9, 0.5))
    assert saved(tmp_path) == ["best_top1_epoch_2.pth", "epoch_3.pth"]
    folder = tmp_path / "checkpoints"
    assert os.stat(folder / "best_top1_epoch_2.pth").st_nlink == 1
    assert os.readlink(folder / "best.pth") == "best_top1_epoch_2.pth"


def test_several_metrics_each_with_its_rule(tmp_path: Path) -> None:
    hook = Checkpoint(save_best=["top1", "loss"], rule=["greater", "less"])
    trained(tmp_path, hook, Scores(0.5, 0.7, 0.9))
    folder = tmp_path / "checkpoints"
    assert hook.rules == {"val/top1": "greater", "val/loss": "less"}
    assert os.readlink(folder / "best.pth") == "best_top1_epoch_3.pth"
    assert os.readlink(folder / "best_loss.pth").startswith("best_loss_epoch_")
    assert os.stat(folder / "best_top1_epoch_3.pth").st_nlink == 2 + (
        os.readlink(folder / "best_loss.pth") == "best_loss_epoch_3.pth"
    )


def test_nan_never_wins(tmp_path: Path) -> None:
    hook = Checkpoint(save_best="top1")
    trained(tmp_path, hook, Scores(float("nan"), 0.2, float("nan")))
    assert hook.best == {"val/top1": {"value": 0.2, "step": 6}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "hooks.checkpoint.interval must be >= 1, or -1 .* got 0"),
        ({"filename": "epoch"}, "hooks.checkpoint.filename must be .* got 'epoch'"),
        ({"filename": "../{}"}, "hooks.checkpoint.filename must be"),
        ({"filename": "a b{}"}, "hooks.checkpoint.filename must be .* got 'a b{}'"),
        ({"filename": ".{}"}, "hooks.checkpoint.filename must be"),
        ({"save_best": 3}, "hooks.checkpoint.save_best must be a metric's name"),
        ({"save_best": ["top1", "loss"], "rule": ["less"] * 3}, "hooks.checkpoint.rule has 3 entries for 2"),
        ({"rule": "less"}, "rule=less has no effect without hooks.checkpoint.save_best"),
    ],
)
def test_what_makes_no_sense_is_a_problem_of_the_configuration(arguments: dict[str, Any], message: str) -> None:
    (problem,) = CheckpointConf(**arguments).problems()
    assert re.search(message, problem)


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hooks.checkpoint.save_best: there is no metric 'topp1'"):
        Checkpoint(save_best="topp1").attach(a_run(tmp_path))


class StopAt(Hook):
    """Ends the run after some step, as the preempt hook would."""

    priority = 0

    def __init__(self, step: int) -> None:
        self.step = step

    def commit(self, run: Run) -> None:
        if run.state.progress.step == self.step:
            run.stop("signal SIGTERM", 143)


def test_a_stop_is_saved_in_the_middle_of_an_epoch_and_at_its_end(tmp_path: Path) -> None:
    trained(tmp_path / "a", Checkpoint(interval=10), StopAt(4))
    assert saved(tmp_path / "a") == ["iter_4.pth"]
    trained(tmp_path / "b", Checkpoint(interval=10), StopAt(6))
    assert saved(tmp_path / "b") == ["epoch_2.pth"]
    trained(tmp_path / "c", Checkpoint(interval=10, save_last=False), StopAt(4))
    assert saved(tmp_path / "c") == []


def test_a_save_that_was_asked_for_does_not_end_the_run(tmp_path: Path) -> None:
    class Ask(Hook):
        priority = 0

        def commit(self, run: Run) -> None:
            run.save_requested = run.state.progress.step == 4

    trained(tmp_path, Checkpoint(interval=10), Ask())
    assert saved(tmp_path) == ["epoch_3.pth", "iter_4.pth"]


def test_an_evaluation_that_was_broken_off_is_saved_as_pending(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    hook = Checkpoint()
    hook.attach(run)
    run.state.progress.step, run.state.progress.epoch, run.state.progress.evaluated = 3, 1, -1
    run.stop("signal SIGTERM", 143)
    hook.commit(run)
    hook.finish(run, None)
    assert saved(tmp_path) == ["iter_3.pth"]
    run.stop_reason, run.exit_code, run.state.progress.evaluated = None, 0, 3
    resumed = Checkpoint()
    resumed.attach(run)
    resumed.load_state_dict(hook.state_dict())
    resumed.commit(run)
    resumed.finish(run, None)
    assert newest_intact(tmp_path / "checkpoints").name == "epoch_1.pth"  # type: ignore[union-attr]


def test_weights_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, Checkpoint(interval=3, save_optimizer=False))
    state = contents.load(tmp_path / "checkpoints" / "epoch_3.pth")
    assert state["kind"] == "weights"
    assert "optimizer" not in state
    assert "cannot be resumed from" in caplog.text


def test_saving_disturbs_nothing(tmp_path: Path) -> None:
    every = trained(tmp_path / "a", Checkpoint(by_epoch=False, interval=1, save_best="loss"))
    never = trained(tmp_path / "b", Checkpoint(interval=-1))
    for left, right in zip(
        every.state.model.state_dict().values(), never.state.model.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right)


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """While `full` is set, every write fails for want of space."""
    disk = SimpleNamespace(full=True, attempts=0)

    def check_space(path: Path, needed_bytes: int) -> None:
        disk.attempts += 1
        if disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("app.checkpoint.directory.check_space", check_space)
    return disk


@pytest.mark.parametrize("async_save", [True, False], ids=["async", "sync"])
def test_the_second_failure_in_a_row_ends_the_run(
    tmp_path: Path, broken_disk: SimpleNamespace, async_save: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(tmp_path, Checkpoint(async_save=async_save), length=30)
    assert run.exit_code == 74
    assert run.state.progress.epoch in (2, 3)  # in the background, one more may have been trained
    assert "No space left on device" in str(run.stop_reason)
    assert "bytes needed" in caplog.text
    assert "training goes on" in caplog.text
    assert saved(tmp_path) == []


def test_one_failure_is_survived(tmp_path: Path, broken_disk: SimpleNamespace) -> None:
    class MakeRoom(Hook):
        priority = 0

        def epoch_end(self, run: Run) -> None:
            broken_disk.full = run.state.progress.epoch == 2

    run = trained(tmp_path, Checkpoint(async_save=False, save_best="top1"), MakeRoom(), Scores(0.1, 0.5, 0.3))
    assert run.exit_code == 0
    assert saved(tmp_path) == ["best_top1_epoch_3.pth", "epoch_1.pth", "epoch_3.pth"]  # epoch 2's 0.5 was lost


def test_a_last_save_that_fails_is_tried_once_more(tmp_path: Path, broken_disk: SimpleNamespace) -> None:
    run = trained(tmp_path, Checkpoint(interval=100))
    assert broken_disk.attempts == 2
    assert run.exit_code == 74


def test_non_finite_weights_are_not_saved_and_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Spoil(Hook):
        def epoch_end(self, run: Run) -> None:
            if run.state.progress.epoch == 2:
                next(run.state.model.parameters()).data[0] = float("nan")

    run = trained(tmp_path, Checkpoint(save_best="top1"), Spoil(), Scores(*[0.1, 0.2, 0.3, 0.4]), length=4)
    assert run.exit_code == 65
    assert saved(tmp_path) == ["best_top1_epoch_1.pth", "epoch_1.pth"]
    assert "0.weight is not finite at step 6: not saved; the last good checkpoint is" in caplog.text


def test_masks_may_hold_infinities() -> None:
    inf, nan = float("inf"), float("nan")
    huge = torch.full((2,), 3e38)
    assert (
        nonfinite(
            {"w": torch.ones(2), "mask": torch.tensor([-inf, 0]), "n": torch.ones(2, dtype=torch.long)}, frozenset("w")
        )
        is None
    )
    assert nonfinite({"w": huge}, frozenset("w")) is None
    assert nonfinite({"w": torch.tensor([1, -inf])}, frozenset("w")) == "w"
    assert nonfinite({"mean": torch.tensor([nan])}, frozenset("w")) == "mean"


def test_at_most_one_save_is_in_flight_and_the_snapshot_is_of_its_step(tmp_path: Path) -> None:
    gate = threading.Event()
    real, running = CheckpointDir.save, [0]

    def slow(store: CheckpointDir, state: Any, entry: Any, best: Any = ()) -> str:
        running[0] += 1
        assert running[0] == 1
        gate.wait(0.05)
        running[0] -= 1
        return real(store, state, entry)

    weights = {}

    class Watch(Hook):
        priority = 0

        def commit(self, run: Run) -> None:
            weights[run.state.progress.step] = run.state.model.state_dict()["0.weight"].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointDir, "save", slow)
        trained(tmp_path, Checkpoint(by_epoch=False), Watch())
    for step in range(1, 10):
        state = contents.load(tmp_path / "checkpoints" / f"iter_{step}.pth")
        assert torch.equal(state["model"]["0.weight"], weights[step])


def test_a_state_that_could_not_be_read_back_names_its_hook(tmp_path: Path) -> None:
    class Bad(Hook):
        def state_dict(self) -> dict[str, Any]:
            return {"when": Path("x")}

    run = a_run(tmp_path)
    run.hooks = {"bad": Bad()}
    with pytest.raises(TypeError, match=r"the state of hooks.bad\['when'\] is a PosixPath"):
        contents.collect(run)


def test_an_unwritable_folder_is_found_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(Exception, match=r"cannot write checkpoints to .*checkpoints") as caught:
        Checkpoint().attach(a_run(tmp_path))
    assert getattr(caught.value, "exit_code", None) == 73


def test_a_run_that_goes_on_elsewhere_has_its_best_there(run_app: RunApp, tmp_path: Path) -> None:
    tiny = ("data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "schedule.warmup=0")
    first = run_app("first", *tiny, "train.max_epochs=2", "optim.lr=0.01")
    source = first / "checkpoints" / "epoch_2.pth"
    frozen = (*tiny, "train.max_epochs=3", "optim.lr=1e-12", f"resume={source}")
    second = run_app("second", *frozen)
    best = second / "checkpoints" / "best.pth"
    assert best.read_bytes() == (first / "checkpoints" / "best.pth").read_bytes()
    assert re.search(rf"best val/top1 \S+ at epoch \d: .*{best.relative_to(second)}", (second / "app.log").read_text())

    begun = Checkpoint()  # as a job that is killed before its first save: a restart must not begin at the best
    begun.attach(a_run(tmp_path / "begun"))
    begun.load_state_dict(contents.load(source)["hooks"]["checkpoint"])
    begun.restored(a_run(tmp_path / "begun"), source)
    assert list((tmp_path / "begun" / "checkpoints").iterdir()) == []

    for path in (first / "checkpoints").glob("*1*"):  # what step 4 left, and the names of best ones
        path.unlink()
    state = contents.load(source)
    state["hooks"]["checkpoint"]["best"]["val/top1"] = {"value": 2.0, "step": 4}
    torch.save(state, first / "checkpoints" / "named.pth")
    third = run_app("third", *frozen[:-1], f"resume={first}/checkpoints/named.pth")
    log = (third / "app.log").read_text()
    assert f"the best checkpoint by val/top1, of step 4, is no longer in {first}/checkpoints" in log
    assert (third / "checkpoints" / "best.pth").resolve().name == "best_top1_epoch_3.pth"
