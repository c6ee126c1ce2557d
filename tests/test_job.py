"""One job as a person starts it: the clock, where it begins, what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from invocation import Outcome, Terminal
from runs import RunApp, digest, scalars

from app.checkpoint import contents

TINY = ("data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "schedule.warmup=0")
"""Four steps an epoch."""
OWN_HOOK = """
from app.core.hook import Hook

class Keep(Hook):
    def __init__(self, text):
        self.length = len(text)
"""


STOPPING = """
from app.core.hook import Hook

class Stopping(Hook):
    def step_end(self, run, step):
        if run.state.progress.step == 2:
            run.stop("asked to", 143)
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("checkpoints/*.pth") if not path.is_symlink()}


def validated(folder: Path) -> list[int]:
    return [row["step"] for row in scalars(folder) if "val/loss" in row]


def test_one_switch_makes_iterations_the_clock(run_app: RunApp) -> None:
    folder = run_app(
        "run", *TINY, "train.by_epoch=false", "train.max_iters=10", "train.val_begin=4", "train.val_interval=3",
        "hooks.checkpoint.interval=4", "hooks.checkpoint.save_best=null", "hooks.logger.interval=2",
        "schedule=step", "schedule.size=5", "optim.lr=0.1",
    )  # fmt: skip
    assert validated(folder) == [6, 9, 10], "multiples of 3 from 4 on, and the end"
    assert names(folder) == {"iter_4", "iter_8", "iter_10"}
    logged = [(row["step"], row["train/lr"]) for row in scalars(folder) if "train/lr" in row]
    assert [step for step, _ in logged] == [2, 4, 6, 8, 10], "across epochs"
    assert [rate for _, rate in logged] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01]), "stairs of 5 iterations"
    log = (folder / "app.log").read_text()
    assert "iter 6/10 " in log
    assert "iter 10/10  val/top1" in log
    assert json.loads((folder / "DONE.json").read_text())["step"] == 10


def test_epochs_are_the_clock_by_default(run_app: RunApp) -> None:
    folder = run_app(
        "run", *TINY, "train.max_epochs=5", "train.val_begin=2", "train.val_interval=2", "hooks.checkpoint.interval=6",
        "hooks.checkpoint.by_epoch=false", "hooks.checkpoint.save_best=null", "schedule=step", "schedule.size=2",
        "hooks.checkpoint.max_keep_ckpts=-1", "hooks.logger.interval=4",
    )  # fmt: skip
    assert validated(folder) == [8, 16, 20]
    assert names(folder) == {"iter_6", "iter_12", "iter_18", "iter_20"}, "the hook's own clock"
    rates = [row["train/lr"] for row in scalars(folder) if "train/lr" in row]
    assert [round(rate / rates[0], 6) for rate in rates] == [1, 1, 0.1, 0.1, 0.01]


def lines(outcome: Outcome, pattern: str) -> list[str]:
    assert outcome.code == 0, outcome.message
    return [line for line in outcome.out.splitlines() if re.search(pattern, line)]


def test_resume_auto_and_true_in_all_their_branches(terminal: Terminal, one_thread: None) -> None:
    def run(*arguments: str) -> Outcome:
        return terminal.run(*TINY, *arguments)

    root = terminal.folder / "outputs" / "digits"
    first = run("train.max_epochs=1", "resume=true")
    assert len(lines(first, "resume=true: no checkpoint in .*; starting fresh")) == 1
    (folder,) = [path for path in root.iterdir() if not path.is_symlink()]
    seed = json.loads((folder / "seed.json").read_text())["seed"]
    assert lines(first, rf"seed {seed} \(randomness.seed=null\)"), "drawn, logged, stored"

    finished = run("train.max_epochs=1", "resume=true")
    assert lines(finished, "already finished at epoch 1, step 4; a longer train.max_epochs")
    longer = run("train.max_epochs=2", "resume=auto", "optim.lr=0.01")
    assert lines(longer, rf"resuming from .*{folder.name}/checkpoints/epoch_1.pth")
    assert lines(longer, r"changed since the checkpoint: train.max_epochs = 2 \(was 1\)")
    assert lines(longer, r"changed since the checkpoint: optim.lr = 0.01 \(was 0.003\)")
    assert lines(longer, f"seed {seed} "), "the stored one, also for what was drawn"
    assert [path for path in root.iterdir() if not path.is_symlink()] == [folder], "continued in that run's folder"
    state = contents.load(folder / "checkpoints" / "epoch_2.pth")
    assert (state["progress"]["step"], state["seed"]) == (8, seed)

    before = files(folder)
    fresh = run("train.max_epochs=1")
    assert not lines(fresh, "resum")
    assert files(folder) == before, "a fresh run never overwrites an older one"
    assert len([path for path in root.iterdir() if not path.is_symlink()]) == 2

    source = folder / "checkpoints" / "epoch_1.pth"
    weights = run("train.max_epochs=1", "name=other", "resume=auto", f"load_from={source}")
    assert lines(weights, "resume=auto: no checkpoint in .*; starting from the weights of load_from=")
    assert lines(weights, "loaded 4 of 4 entries")
    assert lines(weights, "epoch 1/1 iter 4/4")
    everything = run("train.max_epochs=2", "name=third", "resume=true", f"load_from={source}")
    assert lines(everything, "restored epoch 1, step 4")
    assert not lines(everything, "epoch 1/2 iter")
    same = run("train.max_epochs=2", "name=fourth", f"resume={source}")
    third, fourth = (next((terminal.folder / "outputs" / name).glob("2*")) for name in ("third", "fourth"))
    assert lines(same, "restored epoch 1, step 4")
    keys = ("model", "optimizer", "progress")
    left, right = (contents.load(path / "checkpoints" / "epoch_2.pth") for path in (third, fourth))
    assert [digest(left[key]) for key in keys] == [digest(right[key]) for key in keys]


def test_checkpoints_elsewhere_are_resumed_from(terminal: Terminal, one_thread: None) -> None:
    def run(*arguments: str) -> Outcome:
        return terminal.run(*TINY, *arguments)

    elsewhere = "hooks.checkpoint.out_dir=elsewhere"
    run("train.max_epochs=1", elsewhere)
    (folder,) = terminal.folder.glob("outputs/digits/2*")
    (terminal.folder / "outputs/digits/2099-01-01_00-00-00/.hydra").mkdir(parents=True)  # died before its first save
    assert lines(run("train.max_epochs=2", elsewhere, "resume=true"), rf"resuming from .*{folder.name}/epoch_1.pth")
    assert lines(run("train.max_epochs=3", "resume=true"), rf"resuming from .*{folder.name}/checkpoints/epoch_2.pth")
    changed = run("train.max_epochs=4", "resume=true", "hooks.checkpoint.out_dir=changed")
    assert lines(changed, rf"resuming from .*{folder.name}/checkpoints/epoch_3.pth")
    assert (terminal.folder / "changed" / "digits" / folder.name / "epoch_4.json").exists()
    assert not (terminal.folder / "outputs/digits/2099-01-01_00-00-00/checkpoints").exists()


def test_another_metric_begins_without_the_best_of_the_first(terminal: Terminal, one_thread: None) -> None:
    first = terminal.run(*TINY, "train.max_epochs=1", "hooks.checkpoint.save_best=loss")
    assert lines(first, r"best val/top1 \d\.\d+ at epoch 1$"), "best.pth is the best by something else"
    assert lines(first, "next: python -m app .*mode=test load_from=.*best.pth")
    second = terminal.run(*TINY, "train.max_epochs=2", "resume=true", "metrics.monitor=loss")
    (best,) = re.findall(r"best val/loss (\S+) at epoch 2", second.out)
    assert re.search(rf"epoch 2/2  .*val/loss {best} ", second.out)
    assert lines(second, r"changed since the checkpoint: randomness\.seed|metrics\.monitor = loss \(was auto\)")


def test_what_early_stopping_watches_is_reported_and_tested_next(terminal: Terminal, one_thread: None) -> None:
    """The summary, DONE.json, best.pth and the printed command all mean the loss, and measure as the run did."""
    measured = ("tta=flip", "train.amp=bf16", "loss.label_smoothing=0.2", "+hooks=early_stop")
    outcome = terminal.run(
        *TINY, "train.max_epochs=4", "optim.lr=0.03", "schedule=multistep", "schedule.milestones=[1]", *measured,
        "hooks.early_stop.monitor=val/loss", "logging.num_digits=6",
    )  # fmt: skip
    (run,) = terminal.folder.glob("outputs/digits/2*")
    done = json.loads((run / "DONE.json").read_text())
    lowest = min((row for row in scalars(run) if "val/loss" in row), key=lambda row: row["val/loss"])
    assert (done["metric"], done["rule"], done["best"]) == ("val/loss", "less", lowest["val/loss"])
    assert lines(outcome, rf"best val/loss {lowest['val/loss']:.4f} at epoch {lowest['epoch']}: .*best.pth$")
    (command,) = lines(outcome, "^next: ")
    words = shlex.split(command.partition("python -m app ")[2])
    assert not [word for word in words if word.startswith(("schedule", "optim", "train.max"))], "nothing of training"
    assert terminal.run(*words).code == 0
    (tested,) = terminal.folder.glob("outputs/digits/2*_test")
    (row,) = [row for row in scalars(tested) if "test/loss" in row]
    assert row["test/loss"] == lowest["val/loss"]
    assert "best val/loss" not in lines(terminal.run(*TINY, "train.max_epochs=1", *measured), "best val/")[0]


def test_the_next_commands_name_the_configuration_file_and_the_folder(terminal: Terminal, one_thread: None) -> None:
    terminal.write({"own/mine.yaml": "defaults: [config, _self_]\nname: other\ntrain: {max_epochs: 1}\n"})
    flags = ("--config-dir=own", "--config-name=mine")
    outcome = terminal.run(*flags, *TINY, "hooks=[default,ema]")
    (command,) = lines(outcome, "^next: ")
    assert terminal.run(*shlex.split(command.partition("python -m app ")[2])).code == 0
    terminal.write({"stopping.py": STOPPING})
    stopped = terminal.run(*TINY, "hydra.run.dir=by hand", "+hooks.stopping._target_=stopping.Stopping")
    assert stopped.code == 143
    (again,) = re.findall("^to go on: python -m app (.*)", stopped.out, re.M)
    assert lines(
        terminal.run(*shlex.split(again), "hooks.stopping=null", "train.max_epochs=1"), "restored epoch 0, step 2"
    )


def test_a_job_started_again_is_not_taken_for_another(
    terminal: Terminal, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requeued job goes on in its own folder, from its newest checkpoint whatever it was told to begin with."""
    terminal.run(*TINY, "train.max_epochs=2")
    (older,) = terminal.folder.glob("outputs/digits/2*")
    before = files(older)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = [*TINY, "train.max_epochs=2", "resume=true", f"load_from={older}/checkpoints/epoch_1.pth", "name=own"]
    terminal.run(*words)
    (own,) = terminal.folder.glob("outputs/own/2*")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = terminal.run(*words)
    assert lines(again, rf"resuming from .*{own.name}/checkpoints/epoch_2.pth")
    assert lines(again, "already finished at epoch 2")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert lines(terminal.run(*TINY, "train.max_epochs=1"), "no checkpoint in .*; starting fresh")
    assert files(older) == before


def test_load_from_takes_the_weights_and_test_finds_what_was_logged(run_app: RunApp, tmp_path: Path) -> None:
    first = run_app(
        "first", *TINY, "train.max_epochs=2", "optim.lr=0.01", "hooks=[default,ema]", "hooks.ema.momentum=0.5"
    )
    best = first / "checkpoints" / "best.pth"
    values = [row for row in scalars(first) if "val/loss" in row]
    step = contents.load(best)["progress"]["step"]
    expected = next(row for row in values if row["step"] == step)
    tested = run_app("tested", *TINY, "mode=test", f"load_from={best}")
    (row,) = [row for row in scalars(tested) if "test/loss" in row]
    for name in ("top1", "loss", "f1"):
        assert row[f"test/{name}"] == expected[f"val/{name}"], name
    flipped = run_app("flipped", *TINY, "mode=test", f"load_from={best}", "tta=flip")
    (other,) = [row for row in scalars(flipped) if "test/loss" in row]
    assert other["test/loss"] != row["test/loss"]
    assert not (tested / "checkpoints").exists()

    tuned = run_app(
        "tuned", *TINY, "train.max_epochs=1", f"load_from={best}", "optim.lr=1e-12", "hooks.checkpoint.save_best=null"
    )
    state = contents.load(tuned / "checkpoints" / "epoch_1.pth")
    average = contents.load(best)["hooks"]["ema"]["average"]
    assert state["progress"]["step"] == 4, "from epoch 0"
    for name, tensor in state["model"].items():
        torch.testing.assert_close(tensor, average[name], msg=name)


def test_an_early_stopped_run_is_over(run_app: RunApp) -> None:
    stop = (
        "train.max_epochs=9", "+hooks=early_stop", "hooks.early_stop.threshold=0", "hooks.checkpoint.interval=100",
        "hooks.checkpoint.save_best=null",
    )  # fmt: skip
    folder = run_app("run", *TINY, *stop)
    assert names(folder) == {"epoch_1"}, "a last checkpoint, though none was due"
    before = (folder / "vis_data" / "scalars.jsonl").read_bytes()
    run_app("run", *TINY, *stop, "resume=true")
    assert (folder / "vis_data" / "scalars.jsonl").read_bytes() == before
    assert "already finished at epoch 1, step 4: early stop: val/top1" in (folder / "app.log").read_text()
    run_app("run", *TINY, *stop, "hooks.early_stop.threshold=2", "train.max_epochs=2", "resume=true")
    assert names(folder) >= {"epoch_2"}, "with other settings it goes on"
    run_app("run", *TINY, "train.max_epochs=3", "resume=true")
    assert names(folder) >= {"epoch_3"}, "and without the hook"


def rates(folder: Path) -> dict[int, float]:
    return {row["step"]: row["train/lr"] for row in scalars(folder) if "train/lr" in row}


def test_a_changed_rate_and_schedule_count_after_a_resume(run_app: RunApp) -> None:
    every_step = ("hooks.logger.interval=1", "optim=sgd", "optim.lr=0.1")
    folder = run_app("run", *TINY, *every_step, "train.max_epochs=2", "schedule=constant")
    changed = ("schedule=multistep", "schedule.milestones=[2.5]", "optim.lr=0.4", "train.max_epochs=3", "resume=true")
    run_app("run", *TINY, *every_step, *changed)
    found = rates(folder)
    assert [found[step] for step in (1, 8, 9, 10, 11, 12)] == pytest.approx([0.1, 0.1, 0.4, 0.4, 0.04, 0.04])


def test_the_scaled_rate_counts_accumulation(run_app: RunApp) -> None:
    scaled = (
        "optim.lr=0.1",
        "optim.lr_scaling.enable=true",
        "optim.lr_scaling.base_batch_size=8",
        "train.accumulate=2",
    )
    folder = run_app("run", *TINY, "train.max_epochs=1", "schedule=constant", *scaled)
    assert list(rates(folder).values()) == pytest.approx([0.1 * 2 * 16 / 8])


def test_initial_weights_are_for_the_first_start_only(run_app: RunApp, tmp_path: Path) -> None:
    source = contents.load(run_app("source", *TINY, "train.max_epochs=1") / "checkpoints" / "epoch_1.pth")["model"]
    torch.save({f"backbone.{name}": tensor for name, tensor in source.items()}, tmp_path / "pretrained.pth")
    recipe = (
        *TINY,
        "optim.lr=1e-12",
        f"model.init.checkpoint={tmp_path}/pretrained.pth",
        "model.init.prefix=backbone.",
    )
    tuned = run_app("tuned", *recipe, "train.max_epochs=1")
    state = contents.load(tuned / "checkpoints" / "epoch_1.pth")["model"]
    for name, tensor in source.items():
        torch.testing.assert_close(state[name], tensor, msg=name)
    run_app("tuned", *recipe, "train.max_epochs=2", "resume=true")
    log = (tuned / "app.log").read_text()
    assert len(re.findall(r"model.init.checkpoint=\S+: loaded 4 of 4", log)) == 1
    assert "restored epoch 1" in log


def test_check_tries_everything_and_leaves_no_run(terminal: Terminal, one_thread: None) -> None:
    outcome = terminal.run(*TINY, "check=true", "+hooks=ema", "train.accumulate=2")
    outcome.says(
        r"one training step of 32 images, loss \d", "one evaluation step of 32 images", r"saved and loaded \d", "passed"
    )
    assert outcome.code == 0
    assert not list(terminal.folder.rglob("*.pth"))
    assert "resume=true: no checkpoint" in terminal.run(*TINY, "train.max_epochs=1", "resume=true").out


def test_no_secret_of_the_environment_is_in_any_file_of_a_run(terminal: Terminal, one_thread: None) -> None:
    canary = "c4n4ry-s3cr3t"
    for variable in ("WANDB_API_KEY", "MY_SETTING", "DB_PASSWORD"):
        terminal.monkeypatch.setenv(variable, canary)
    terminal.write({"canary_parts.py": OWN_HOOK})
    outcome = terminal.run(
        *TINY, "train.max_epochs=1", "visualizer=[local,tensorboard]", "hydra.run.dir=run",
        "+hooks.keep={_target_: canary_parts.Keep, text: '${oc.env:MY_SETTING}'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.message
    found = files(terminal.folder / "run")
    assert len(found) > 10
    assert any("oc.env:MY_SETTING" in content.decode(errors="ignore") for content in found.values()), "kept as a name"
    assert [name for name, content in found.items() if canary.encode() in content] == []
    assert canary not in outcome.message


def test_what_a_run_was_is_in_its_folder(run_app: RunApp) -> None:
    folder = run_app("run", *TINY, "train.max_epochs=1")
    written: dict[str, Any] = json.loads((folder / "environment.json").read_text())
    assert "train.max_epochs=1" in written["overrides"]
    assert torch.__version__.startswith(written["versions"]["torch"])
    assert {"command", "launched", "directory", "git_commit", "machine"} <= written.keys()
    (snapshot,) = (folder / ".hydra").iterdir()
    assert "max_epochs: 1" in (snapshot / "config.yaml").read_text()
    assert (snapshot / "code.diff").exists() == written["git_dirty"]
    assert json.loads((folder / "DONE.json").read_text())["epoch"] == 1
