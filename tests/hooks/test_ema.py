from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Recorder, make, network, tiny_run, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from app.config.schema.hooks import EMAConf
from app.core.hook import Hook
from app.core.state import Run, StepInfo
from app.errors import CheckpointError


class Reference(Hook):
    """torch's own average, updated at every step from `begin` on."""

    def __init__(self, begin: int = 0, **arguments: Any) -> None:
        self.begin, self.arguments = begin, arguments

    def attach(self, run: Run) -> None:
        self.averaged = AveragedModel(run.state.model, **self.arguments)

    def step_end(self, run: Run, step: StepInfo) -> None:
        if run.state.progress.step > self.begin:
            self.averaged.update_parameters(run.state.model)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("conf", "reference"),
    [
        (EMAConf(momentum=0.1), Reference(multi_avg_fn=get_ema_multi_avg_fn(0.9))),
        (EMAConf(decay=0.99), Reference(multi_avg_fn=get_ema_multi_avg_fn(0.99))),
        (EMAConf(kind="swa"), Reference(multi_avg_fn=get_swa_multi_avg_fn())),
        (EMAConf(kind="swa", begin_iter=4), Reference(4, multi_avg_fn=get_swa_multi_avg_fn())),
        (EMAConf(momentum=0.2, begin_epoch=1), Reference(3, multi_avg_fn=get_ema_multi_avg_fn(0.8))),
        (
            EMAConf(momentum=0.1, update_buffers=True),
            Reference(multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        ),
    ],
    ids=["momentum", "decay", "swa", "swa from a step", "from an epoch", "buffers"],
)
def test_the_average_is_torch_s(conf: EMAConf, reference: Reference, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    train(run, {"ema": make(conf), "reference": reference})
    average = run.hooks["ema"].state_dict()["average"]
    assert equal(
        {name: average[name] for name, _ in run.state.model.named_parameters()},
        {name: parameter.detach() for name, parameter in reference.averaged.module.named_parameters()},
    )
    theirs = reference.averaged.module if conf.update_buffers else run.state.model
    for name, buffer in theirs.named_buffers():
        if buffer.dtype.is_floating_point:
            assert torch.equal(average[name], buffer)
    assert average.keys() == run.state.model.state_dict().keys()


def test_annealing_follows_its_formula(tmp_path: Path) -> None:
    weights = Recorder("step_end", lambda run: clone(dict(run.state.model.named_parameters())))
    run = tiny_run(tmp_path)
    train(run, {"ema": make(EMAConf(kind="annealing", momentum=0.5, gamma=4)), "weights": weights})
    expected = {name: value.double() for name, value in weights.seen[0].items()}
    for updates, step in enumerate(weights.seen[1:], start=1):
        momentum = max(0.5, 4 / (4 + updates))
        expected = {name: (1 - momentum) * value + momentum * step[name] for name, value in expected.items()}
    average = run.hooks["ema"].state_dict()["average"]
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value.float(), rtol=1e-5, atol=1e-6)


def test_before_begin_the_average_is_the_weights(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    train(run, {"ema": make(EMAConf(begin_epoch=5, evaluate_on_origin=True))})
    assert run.hooks["ema"].state_dict()["updates"] == 0
    assert equal(run.hooks["ema"].state_dict()["average"], run.state.model.state_dict())


def evaluated_loss(run: Run, weights: dict[str, torch.Tensor]) -> float:
    model = copy.deepcopy(run.state.model).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        return float(nn.functional.cross_entropy(model(run.data.images), run.data.targets))  # type: ignore[attr-defined]


@pytest.mark.parametrize("on_origin", [False, True])
def test_validates_on_the_average_and_on_both(on_origin: bool, tmp_path: Path) -> None:
    found: list[dict[str, float]] = []

    class Metrics(Hook):
        priority = 90

        def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
            found.append(dict(metrics))

    states = Recorder(
        "commit", lambda run: [clone(run.hooks["ema"].state_dict()["average"]), clone(run.state.model.state_dict())]
    )
    run = tiny_run(tmp_path)
    ema = make(EMAConf(momentum=0.1, evaluate_on_origin=on_origin))
    train(run, {"ema": ema, "metrics": Metrics(), "states": states})
    assert len(found) == 3
    for metrics, (average, raw) in zip(found, states.seen[2::3], strict=True):
        assert metrics["val/loss"] == pytest.approx(evaluated_loss(run, average), abs=1e-6)
        if on_origin:
            assert metrics["val/loss_origin"] == pytest.approx(evaluated_loss(run, raw), abs=1e-6)
            assert metrics["val/loss_origin"] != metrics["val/loss"]
    assert on_origin or "val/loss_origin" not in found[0]


def test_evaluate_on_ema_false_validates_on_the_weights(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    train(run, {"ema": make(EMAConf(momentum=0.1, evaluate_on_ema=False))})
    assert run.evaluation is not None
    assert run.evaluation.metrics["loss"] == pytest.approx(evaluated_loss(run, run.state.model.state_dict()), abs=1e-6)


def test_training_is_untouched(tmp_path: Path) -> None:
    plain, averaged = tiny_run(tmp_path), tiny_run(tmp_path)
    train(plain, {})
    train(averaged, {"ema": make(EMAConf(kind="swa", evaluate_on_origin=True, update_buffers=True))})
    assert equal(plain.state.model.state_dict(), averaged.state.model.state_dict())


def test_the_weights_come_back_after_an_error(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    before: dict[str, torch.Tensor] = {}

    class Broken(Hook):
        priority = 90

        def evaluating(self, run: Run) -> Any:
            assert not equal(clone(run.state.model.state_dict()), before)
            raise OSError("no room")

        def step_end(self, run: Run, step: StepInfo) -> None:
            before.update(clone(run.state.model.state_dict()))

    with pytest.raises(OSError, match="no room"):
        train(run, {"ema": make(EMAConf(kind="swa")), "broken": Broken()})
    assert equal(run.state.model.state_dict(), before)


def test_statistics_recomputed_for_the_average_stay_with_it_until_the_next_step(tmp_path: Path) -> None:
    class Statistics(Hook):
        priority = 60

        @contextmanager
        def evaluating(self, run: Run) -> Iterator[None]:
            run.state.model[1].running_mean.fill_(42.0)  # type: ignore[index, union-attr, operator]
            yield

    run = tiny_run(tmp_path)
    look = Recorder("commit", lambda run: clone(run.hooks["ema"].state_dict()["average"])["1.running_mean"])
    train(run, {"ema": make(EMAConf(kind="swa")), "statistics": Statistics(), "look": look})
    assert [bool((mean == 42.0).all()) for mean in look.seen] == [False, False, True] * 3
    assert not (run.state.model[1].running_mean == 42.0).any()  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("stop_at", range(1, 9))
@pytest.mark.parametrize("conf", [EMAConf(kind="annealing", begin_iter=2), EMAConf(kind="swa", update_buffers=True)])
def test_resume_is_exact(conf: EMAConf, stop_at: int, tmp_path: Path) -> None:
    """The state moves through a dictionary of copies into new objects, as through a checkpoint."""
    whole = tiny_run(tmp_path)
    train(whole, {"ema": make(conf)})

    class Stop(Hook):
        priority = 90

        def commit(self, run: Run) -> None:
            if run.state.progress.step == stop_at:
                run.stop("enough")

    first = tiny_run(tmp_path)
    train(first, {"ema": make(conf), "stop": Stop()})
    second = tiny_run(tmp_path)
    second.state.model.load_state_dict(clone(first.state.model.state_dict()))
    second.state.optimizer.load_state_dict(copy.deepcopy(first.state.optimizer.state_dict()))
    second.state.progress = first.state.progress
    second.hooks = {"ema": make(conf)}
    second.hooks["ema"].attach(second)
    saved = first.hooks["ema"].state_dict()
    second.hooks["ema"].load_state_dict({"updates": saved["updates"], "average": clone(saved["average"])})
    train(second, second.hooks, attach=False)
    assert equal(second.state.model.state_dict(), whole.state.model.state_dict())
    ours, theirs = second.hooks["ema"].state_dict(), whole.hooks["ema"].state_dict()
    assert ours["updates"] == theirs["updates"]
    assert equal(ours["average"], theirs["average"])


def test_tied_weights_and_replaced_buffers(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.again = self.body[6]
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("scratch", torch.zeros(()), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.count = self.count + 1  # another tensor every time
            return self.body(images)  # type: ignore[no-any-return]

    run = tiny_run(tmp_path, model=Tied())
    train(run, {"ema": make(EMAConf(momentum=0.1))})
    average = run.hooks["ema"].state_dict()["average"]
    assert average.keys() == run.state.model.state_dict().keys()
    assert torch.equal(average["again.weight"], average["body.6.weight"])
    assert average["count"] == 9
    assert run.state.model.again.weight is run.state.model.body[6].weight  # type: ignore[union-attr, index]


def test_an_average_of_another_model_is_refused(tmp_path: Path) -> None:
    ema = make(EMAConf())
    ema.attach(tiny_run(tmp_path))
    with pytest.raises(CheckpointError, match=r"of another model: it differs in .*'0.weight'"):
        ema.load_state_dict({"updates": 1, "average": {"other": torch.zeros(1)}})
