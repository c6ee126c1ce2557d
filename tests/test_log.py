"""What is said, when, and by whom."""

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invocation import Terminal
from runs import RunApp, scalars

from app.core.state import Run
from app.engine import loop
from app.log import ConsoleHandler, LogFile, ProgressDisplay, quiet_other_ranks

TINY = ("data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "hooks.checkpoint.interval=-1")
"""Four steps an epoch."""


def logged(folder: Path) -> list[int]:
    return [row["step"] for row in scalars(folder) if "train/loss" in row]


def test_lines_come_at_their_interval_and_at_the_end(run_app: RunApp) -> None:
    long = run_app("long", *TINY, "train.max_epochs=2", "hooks.logger.interval=100", "train.clip_norm=1")
    assert logged(long) == [4, 8], "one line an epoch, though the interval is longer"
    every_third = run_app("third", *TINY, "train.max_epochs=2", "hooks.logger.interval=3")
    assert logged(every_third) == [3, 7, 8], "and the last iteration"
    line = next(line for line in (long / "app.log").read_text().splitlines() if "epoch 2/2" in line)
    for part in (r"loss \d", r"top1 \d", r"lr \d", r"grad_norm \d", r"time \d.* ms \(data", r"\d img/s", r"eta 0:"):
        assert re.search(part, line), part


def test_the_time_left_includes_every_evaluation_to_come(
    run_app: RunApp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = loop.evaluate

    def slow(run: Run, *arguments: Any) -> dict[str, float] | None:
        metrics = original(run, *arguments)
        run.evaluation_seconds = 1000.0
        return metrics

    monkeypatch.setattr(loop, "evaluate", slow)
    run_app("epochs", *TINY, "train.max_epochs=7", "train.val_interval=3", "hooks.logger.interval=100")
    left = [int(seconds) // 1000 for seconds in eta(capsys.readouterr().out)]
    assert left == [0, 0, 0, 2, 2, 2, 1], "nothing is known before the first; then at 3 (done), 6 and 7"
    iterations = ("train.by_epoch=false", "train.max_epochs=null", "train.max_iters=8", "train.val_interval=2")
    run_app("iterations", *TINY, *iterations, "hooks.logger.interval=1", "schedule.warmup=0")
    left = [int(seconds) // 1000 for seconds in eta(capsys.readouterr().out)]
    assert left == [0, 0, 3, 2, 2, 1, 1, 0]


def eta(text: str) -> list[float]:
    """The seconds left, in each line that says so."""
    found = re.findall(r"eta (\d+):(\d+):(\d+)", text)
    return [3600 * int(hours) + 60 * int(minutes) + int(seconds) for hours, minutes, seconds in found]


def test_images_per_second_are_those_of_the_window(run_app: RunApp) -> None:
    folder = run_app(
        "run", *TINY, "data.limit_train=65", "train.max_epochs=1", "hooks.logger.interval=1", "logging.window_size=5"
    )
    rows = [json.loads(line) for line in (folder / "vis_data" / "scalars.jsonl").read_text().splitlines()]
    last = [row for row in rows if "train/time" in row][-1]
    assert last["train/images_per_second"] == pytest.approx(65 / (5 * last["train/time"])), "not the last batch's one"


def test_no_accuracy_is_shown_for_mixed_targets(run_app: RunApp) -> None:
    switch = "hooks.switch_recipe.schedule=[{epoch: 1, batch_augment: {mixup: {}}}]"
    folder = run_app(
        "run",
        *TINY,
        "train.max_epochs=2",
        "hooks.logger.interval=1",
        "logging.window_size=2",
        "+hooks=switch_recipe",
        switch,
    )
    shown = ["train/top1" in row for row in scalars(folder) if "train/loss" in row]
    assert shown == [True] * 5 + [False] * 3, "the window of the first mixed step still holds one that was not"


def test_custom_values_are_reduced_as_asked(run_app: RunApp) -> None:
    rules = "[{source: loss, method: max, window: epoch, name: worst}, {source: loss, window: 1}]"
    folder = run_app("run", *TINY, "train.max_epochs=2", "hooks.logger.interval=1", f"logging.custom={rules}")
    rows = [row for row in scalars(folder) if "train/loss" in row]
    for start in (0, 4):
        epoch = [row["train/loss"] for row in rows[start : start + 4]]
        assert rows[start + 3]["train/worst"] == max(epoch)


def test_numbers_have_as_many_digits_as_asked(run_app: RunApp) -> None:
    folder = run_app("run", *TINY, "train.max_epochs=1", "logging.num_digits=2", "hooks.logger.interval=4")
    (line,) = [line for line in (folder / "app.log").read_text().splitlines() if "iter 4/4" in line]
    assert re.search(r"loss \d\.\d\d  top1 \d\.\d\d  ", line)


def test_the_level_is_that_of_console_and_file(terminal: Terminal, one_thread: None) -> None:
    quiet = terminal.run(*TINY, "train.max_epochs=1", "logging.level=WARNING", "hydra.run.dir=run")
    assert (quiet.code, quiet.out) == (0, "")
    assert (terminal.folder / "run" / "app.log").read_text() == ""


def test_lines_from_warning_on_carry_their_level(terminal: Terminal, one_thread: None) -> None:
    """On a console that is no terminal, and in the file; plain lines stay plain."""
    outcome = terminal.run(*TINY, "train.max_epochs=1", "hydra.run.dir=run", "optim.lr=1e30", "+hooks=[nan_guard,ema]",
                           "hooks.nan_guard.interval=1", "hooks.ema.momentum=1e-9")  # fmt: skip
    assert outcome.code == 65
    (warning,) = re.findall("^.*hooks.ema.momentum=1e-09 is small.*$", outcome.out, re.M)
    (error,) = re.findall("^.*last good checkpoint.*$", outcome.out, re.M)
    assert (warning[:28], error[:12]) == ("warning: hooks.ema.momentum=", "error: step ")
    assert re.findall("^seed ", outcome.out, re.M)
    file = (terminal.folder / "run" / "app.log").read_text()
    assert re.search(r"^\S+ \S+ WARNING app\.hooks\.ema: hooks.ema.momentum=", file, re.M)
    assert re.search(r"^\S+ \S+ ERROR app\.cli: ", file, re.M)


def test_hooks_run_by_priority_and_their_order_is_said(terminal: Terminal, one_thread: None) -> None:
    outcome = terminal.run(
        *TINY, "check=true", "hooks=[default,ema,empty_cache]", "hooks.empty_cache.priority=5",
        "hooks.logger.priority=HIGHEST", "hooks.class_num_check.priority=ABOVE_NORMAL",
    )  # fmt: skip
    outcome.says(r"hooks: preempt \(0\), logger \(0\)|hooks: logger \(0\), preempt \(0\)")
    (order,) = re.findall(r"hooks: (.*)", outcome.out)
    names = re.findall(r"(\w+) \((\d+)\)", order)
    assert [int(priority) for _, priority in names] == sorted(int(priority) for _, priority in names)
    assert names[2] == ("empty_cache", "5")
    assert "monitor" in dict(names)


@pytest.fixture
def handlers_put_back() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@pytest.mark.usefixtures("handlers_put_back")
def test_other_ranks_speak_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    quiet_other_ranks(0)
    assert logging.getLogger().handlers == handlers
    quiet_other_ranks(3)
    logging.getLogger("app").error("broken")
    logging.getLogger("app").info("going on")
    out = capsys.readouterr().out
    assert "[rank 3][ERROR] broken" in out
    assert "going on" not in out


class Screen(io.StringIO):
    """A terminal, as far as anybody can tell."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("enabled", "terminal", "shown"), [("auto", True, True), ("auto", False, False),
                                                            (True, False, True), (False, True, False)])  # fmt: skip
def test_a_live_display_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, enabled: bool | str, terminal: bool, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", Screen() if terminal else io.StringIO())
    display = ProgressDisplay(enabled, 10, "epochs")
    try:
        assert (ConsoleHandler.console is not None) == shown
        display.update(3, "loss 0.5")
    finally:
        display.close()
    assert ConsoleHandler.console is None


def test_a_reader_that_leaves_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    handler = ConsoleHandler()
    with os.fdopen(write_end, "w") as stream:
        handler.setStream(stream)
        for line in ("first", "second"):
            handler.handle(logging.LogRecord("app", logging.INFO, __file__, 1, line, None, None))
    assert capfd.readouterr().err == ""


def test_a_log_file_on_a_full_disk_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile("/dev/full")
    for _ in range(3):
        handler.handle(logging.LogRecord("app", logging.INFO, "", 0, "a line", (), None))
    handler.close()
    assert capsys.readouterr().err == "cannot write /dev/full: No space left on device; what it lacks is here only\n"
