"""Several real gloo ranks under a real torchrun."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from ranks import harm
from runs import RunApp, digest, scalars

from app.checkpoint import contents

RECIPE = (
    "env.device=cpu", "model=mlp", "model.hidden=[16]", "data.limit_train=200", "data.limit_val=50",
    "data.batch_size=30", "data.augment=[crop]", "train.accumulate=2", "train.clip_norm=1", "train.max_epochs=3",
    "hooks=[default,ema]", "hooks.ema.momentum=0.1", "hooks.logger.interval=1", "randomness.seed=3",
    "hooks.checkpoint.by_epoch=false", "hooks.checkpoint.max_keep_ckpts=-1",
)  # fmt: skip
STEPS = 12


def weights(folder: Path, step: int = STEPS) -> dict[str, Any]:
    state = contents.load(folder / "checkpoints" / f"iter_{step}.pth")
    return {key: state[key] for key in ("model", "optimizer", "progress")} | {"ema": state["hooks"]["ema"]}


def assert_close(one: Any, other: Any) -> None:
    """Nested states equal up to the order of sums."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)
    else:
        assert one == pytest.approx(other)


def curve(folder: Path) -> list[dict[str, float]]:
    names = ("step", "epoch", "train/loss", "train/top1", "train/grad_norm", "val/loss", "val/top1")
    return [{name: row[name] for name in names if name in row} for row in scalars(folder)]


def assert_same_curve(one: Path, other: Path) -> None:
    left, right = curve(one), curve(other)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_ddp_and_fsdp_equal_one_process_and_go_on_at_another_world_size(run_app: RunApp, tmp_path: Path) -> None:
    one = run_app("one", *RECIPE)
    for name, size, strategy in (("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        folder = tmp_path / name
        code, output = ranks.run(size, folder, *RECIPE, f"env.dist.strategy={strategy}")
        assert code == 0, output
        assert_close(weights(one), weights(folder))
        assert_same_curve(one, folder)
    moved = tmp_path / "moved"
    assert ranks.run(4, moved, *RECIPE, harm(6, 2, "SIGKILL"))[0] != 0  # in the middle of the second epoch
    assert ranks.run(2, moved, *RECIPE, "resume=true", harm(9, 0, "SIGKILL"))[0] != 0
    code, output = ranks.run(3, moved, *RECIPE, "resume=true")
    assert code == 0, output
    assert_close(weights(one), weights(moved))
    assert_same_curve(one, moved)
    assert weights(moved)["progress"]["samples"] == 3 * 200


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_resume_is_exact(tmp_path: Path, strategy: str) -> None:
    recipe = (*RECIPE, f"env.dist.strategy={strategy}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ranks.run(2, whole, *recipe)[0] == 0
    code, output = ranks.run(2, parts, *recipe, "hooks.checkpoint.interval=1000", harm(5, 1, "SIGUSR2"))
    assert code != 0
    assert "signal SIGUSR2" in output
    assert [path.name for path in (parts / "checkpoints").glob("iter_*.pth")] == ["iter_5.pth"]
    code, output = ranks.run(2, parts, *recipe, "resume=true")
    assert code == 0, output
    assert digest(weights(whole)) == digest(weights(parts))
    assert scalars(whole) == scalars(parts)


def test_no_thread_of_the_process_group_is_left_at_exit(tmp_path: Path) -> None:
    """A thread of gloo's that gives back a tensor while the interpreter ends aborts the process, one run in twenty."""
    code, output = ranks.run(2, tmp_path / "run", *RECIPE, "train.max_epochs=1", "+hooks.x={_target_: ranks.Threads}")
    assert code == 0, output
    for rank in range(2):
        names = output.partition(f"rank {rank} ends with threads ")[2].partition("\n")[0]
        assert "python" in names
        assert "gloo" not in names


def test_evaluation_is_the_same_to_the_bit_on_any_number_of_ranks() -> None:
    alone = ranks.measure(1)
    assert set(alone) == {"1", "7", "1001", "10000"}
    assert sum(map(sum, alone["10000"]["confusion"])) == 10_000
    for size in (2, 3, 4):
        assert ranks.measure(size) == alone, f"{size} ranks"


def test_a_frozen_rank_is_named_and_ends_the_others(tmp_path: Path) -> None:
    with ranks.start(2, tmp_path / "run", *RECIPE, "env.dist.timeout=8", harm(5, 1, "SIGSTOP")) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        named = next(line for line in lines if "lost touch" in line)
        os.kill(process.pid, signal.SIGTERM)
        process.stdout.read()
    assert "rank 0 lost touch with the other ranks: rank 1 (pid " in named
    assert "is stopped" in named
    assert process.returncode != 0


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_dead_agent_leaves_no_orphans_and_loses_no_step(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    with ranks.start(2, folder, *RECIPE, "train.max_epochs=100000", "hooks.checkpoint.interval=1000000") as process:
        rows = folder / "vis_data" / "scalars.jsonl"
        wait_for(lambda: rows.exists() and rows.stat().st_size > 0)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(getattr(signal, name))
        process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in children))
    (saved,) = (json.loads(path.read_text()) for path in (folder / "checkpoints").glob("iter_*.json"))
    assert saved["step"] == scalars(folder)[-1]["step"], "the step that was logged last"


@pytest.mark.slow
def test_torchrun_restarts_resume_20_of_20(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        code, output = ranks.run(2, folder, *RECIPE, harm(4 + attempt % 7, attempt % 2, "SIGKILL"), restarts=1)
        assert code == 0, output
        assert json.loads((folder / "DONE.json").read_text())["step"] == STEPS


def wait_for(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_under_both_strategies(run_app: RunApp, tmp_path: Path, amp: str) -> None:
    recipe = (*RECIPE, f"train.amp={amp}")
    one = run_app("one", *recipe)
    for strategy in ("ddp", "fsdp"):
        folder = tmp_path / strategy
        code, output = ranks.run(2, folder, *recipe, f"env.dist.strategy={strategy}")
        assert code == 0, output
        for left, right in zip(curve(one), curve(folder), strict=True):
            assert left == pytest.approx(right, rel=0.03, abs=0.03)


@pytest.mark.slow
def test_unused_parameters_need_the_setting_that_looks_for_them(tmp_path: Path) -> None:
    model = ("model=custom", "model._target_=ranks.HalfUsed", "train.max_epochs=1", "env.device=cpu", "hooks=[default]")
    recipe = (*(word for word in RECIPE if not word.startswith(("model", "hooks"))), *model)
    code, output = ranks.run(2, tmp_path / "refused", *recipe, "env.dist.timeout=20")
    assert code != 0
    assert "find_unused_parameters" in output
    code, output = ranks.run(2, tmp_path / "looked_for", *recipe, "env.dist.find_unused_parameters=true")
    assert code == 0, output


@pytest.mark.slow
def test_diff_rank_seed_changes_what_the_other_ranks_draw(tmp_path: Path) -> None:
    recipe = (*RECIPE, "model.dropout=0.5", "train.max_epochs=1")
    digests = set()
    for name, setting in (("same", "false"), ("again", "false"), ("different", "true")):
        code, output = ranks.run(2, tmp_path / name, *recipe, f"randomness.diff_rank_seed={setting}")
        assert code == 0, output
        digests.add(digest(weights(tmp_path / name, 4)["model"]))
    assert len(digests) == 2
