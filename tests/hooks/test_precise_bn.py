from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_run import Recorder, make, network, tiny_run, train
from torch import nn
from torch.optim.swa_utils import update_bn

from app.config.schema.hooks import EMAConf, PreciseBNConf
from app.core.state import Run
from app.hooks.precise_bn import recompute


def expected(run: Run, weights: dict[str, torch.Tensor], epoch: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own recomputation, for the same batches."""
    model = copy.deepcopy(run.state.model)
    model.load_state_dict(weights)
    model.eval()
    batches = [micro.images for step in run.data.train(epoch, 0) for micro in step.micros][:steps]
    norm = model[1]  # type: ignore[index]
    norm.train()
    update_bn(batches, model)
    return norm.running_mean, norm.running_var


@pytest.mark.parametrize(("num_samples", "steps"), [(8192, 3), (8, 2), (5, 2), (1, 1)])
def test_statistics_are_torch_s_update_bn(num_samples: int, steps: int, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with torch.no_grad():
        run.state.model[0].weight += 0.3  # type: ignore[index, union-attr, operator]
    mean, variance = expected(run, run.state.model.state_dict(), 0, steps)
    recompute(run, num_samples)
    norm = run.state.model[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1


def test_only_statistics_change_and_modes_come_back(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    model = run.state.model
    model[5].eval()  # type: ignore[index]
    parameters = [parameter.clone() for parameter in model.parameters()]
    recompute(run, 12)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), parameters, strict=True))
    assert [module.training for module in model] == [True] * 5 + [False, True]  # type: ignore[union-attr]


def test_dropout_is_off(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, model=nn.Sequential(nn.Dropout(0.5), *network()))  # type: ignore[misc]
    norm = run.state.model[2]  # type: ignore[index]
    recompute(run, 12)
    mean = norm.running_mean.clone()
    recompute(run, 12)
    assert torch.equal(norm.running_mean, mean)


def test_frozen_norms_are_left_alone(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    norm = run.state.model[1]  # type: ignore[index]
    norm.eval()
    recompute(run, 12)
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_runs_at_every_interval_th_validation(tmp_path: Path) -> None:
    statistics = Recorder("eval_end", lambda run: run.state.model[1].running_mean.clone())
    weights = Recorder("step_end", lambda run: copy.deepcopy(run.state.model.state_dict()))
    run = tiny_run(tmp_path, length=4)
    train(run, {"precise_bn": make(PreciseBNConf(interval=2)), "statistics": statistics, "weights": weights})
    for validation, found in enumerate(statistics.seen, start=1):
        before = weights.seen[validation * 3 - 1]
        precise = expected(run, before, validation, 3)[0]
        torch.testing.assert_close(found, precise if validation % 2 == 0 else before["1.running_mean"])


def test_with_ema_they_are_of_the_average(tmp_path: Path) -> None:
    statistics = Recorder("eval_end", lambda run: run.state.model[1].running_mean.clone())
    run = tiny_run(tmp_path)
    train(run, {"ema": make(EMAConf(kind="swa")), "precise_bn": make(PreciseBNConf()), "statistics": statistics})
    average = run.hooks["ema"].state_dict()["average"]
    precise = expected(run, average, 3, 3)[0]
    torch.testing.assert_close(statistics.seen[-1], precise)
    torch.testing.assert_close(average["1.running_mean"], precise)
    assert not torch.allclose(run.state.model[1].running_mean, precise)  # type: ignore[index, arg-type]


def test_a_model_without_batch_norm_is_fine(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    train(tiny_run(tmp_path, model=model), {"precise_bn": make(PreciseBNConf())})


def test_a_batch_that_is_too_small_is_torch_s_error(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3)))
    run.data.images, run.data.targets = run.data.images[:1], run.data.targets[:1]  # type: ignore[attr-defined]
    run.data._batch = lambda indices, one=run.data._batch: one(indices[:1] * 0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recompute(run, 12)
    assert run.state.model.training


def test_the_weights_it_trains_are_those_without_it(tmp_path: Path) -> None:
    plain, precise = tiny_run(tmp_path), tiny_run(tmp_path)
    train(plain, {})
    train(precise, {"precise_bn": make(PreciseBNConf())})
    for left, right in zip(plain.state.model.parameters(), precise.state.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert network()[1].momentum == 0.1
