from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_run import Recorder, make, tiny_run, train

from app.config.schema.hooks import PreciseBNConf, SyncBuffersConf
from app.core.ranks import World


def two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(torch.device("cpu"), rank, 2, rank, 2)
    statistics = {}
    for name, hooks in {
        "none": {},
        "sync": {"sync_buffers": make(SyncBuffersConf())},
        "precise": {"precise_bn": make(PreciseBNConf())},
    }.items():
        run = tiny_run(Path(folder), world)
        at_eval = Recorder("eval_end", lambda run: run.state.model[1].running_mean.clone())
        at_step = Recorder("step_end", lambda run: run.state.model[1].running_mean.clone())
        train(run, {**hooks, "at_eval": at_eval, "at_step": at_step})
        statistics[name] = {"eval": at_eval.seen, "step": at_step.seen, "count": run.state.model[1].num_batches_tracked}
    torch.save(statistics, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_buffers_are_the_mean_over_the_ranks() -> None:
    """Ranks see different images and, without DDP, train different weights, so their statistics differ."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(two_ranks, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
        one, two = (torch.load(f"{folder}/{rank}.pt") for rank in (0, 1))
    assert torch.equal(two["none"]["eval"][0], one["none"]["step"][2])  # without the hook: the main rank's
    first = [one["sync"]["step"][2], two["sync"]["step"][2]]
    assert not torch.equal(*first)
    torch.testing.assert_close(one["sync"]["eval"][0], (first[0] + first[1]) / 2)
    for name in ("sync", "precise"):
        assert all(torch.equal(*pair) for pair in zip(one[name]["eval"], two[name]["eval"], strict=True)), name
    assert one["sync"]["count"] == 9


def test_a_single_process_is_left_alone(tmp_path: Path) -> None:
    plain, synced = tiny_run(tmp_path), tiny_run(tmp_path)
    train(plain, {})
    train(synced, {"sync_buffers": make(SyncBuffersConf())})
    for left, right in zip(plain.state.model.buffers(), synced.state.model.buffers(), strict=True):
        assert torch.equal(left, right)


def test_runs_before_the_average_is_taken() -> None:
    from app.config.schema.hooks import EMAConf
    from app.core.hook import priority_of

    assert priority_of(make(SyncBuffersConf())) < priority_of(make(EMAConf())) < priority_of(make(PreciseBNConf()))
