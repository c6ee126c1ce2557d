from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hooks.tiny_run import Feed, network, tiny_run, train
from torch import nn

from app.checkpoint import contents
from app.core.hook import Hook
from app.core.ranks import World
from app.core.state import Run, TrainState
from app.errors import CheckpointError


class Counter(Hook):
    """A hook with a state."""

    def __init__(self) -> None:
        self.steps = 0
        self.seen = torch.zeros(1)

    def step_end(self, run: Run, step: Any) -> None:
        self.steps += 1
        self.seen += step.loss

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.steps, self.seen = state["steps"], state["seen"]


def optimizer_of(model: nn.Module, **arguments: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), **({"lr": 0.01} | arguments))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def a_run(folder: Path, model: nn.Module | None = None, optimizer: Any = None, **fields: Any) -> Run:
    model = model or network()
    state = TrainState(model, model, optimizer or optimizer_of(model), fields.pop("scaler", None))
    run = tiny_run(folder, model=model, **({"state": state} | fields))
    run.hooks = {"counter": Counter()}
    return run


def trained(folder: Path) -> Run:
    run = a_run(folder)
    train(run, run.hooks)
    return run


def stored(run: Run, path: Path, **arguments: Any) -> dict[str, Any]:
    """The state of `run` after a trip through a file."""
    torch.save(contents.collect(run, **arguments), path)
    return contents.load(path)


def test_everything_comes_back(tmp_path: Path) -> None:
    run = trained(tmp_path)
    path = tmp_path / "x.pth"
    state = stored(run, path)
    again = a_run(tmp_path)
    assert contents.restore(again, state) == []
    path.write_bytes(b"\0" * path.stat().st_size)  # nothing may still be mapped from the file
    for left, right in zip(run.state.model.state_dict().values(), again.state.model.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(run.state.optimizer.state.values(), again.state.optimizer.state.values(), strict=True):
        assert left.keys() == right.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert again.state.progress == run.state.progress
    counter, before = again.hooks["counter"], run.hooks["counter"]
    assert isinstance(counter, Counter)
    assert isinstance(before, Counter)
    assert counter.steps == 9
    assert torch.equal(counter.seen, before.seen)


def test_the_configuration_s_hyperparameters_win(tmp_path: Path) -> None:
    state = stored(trained(tmp_path), tmp_path / "x.pth")
    model = network()
    again = a_run(tmp_path, model, optimizer_of(model, lr=0.5, weight_decay=0.3, betas=(0.8, 0.9)))
    contents.restore(again, state)
    group = again.state.optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"], group["betas"]) == (0.5, 0.5, 0.3, (0.8, 0.9))


class ScheduleFree(torch.optim.SGD):
    """Keeps a counter in its groups, as schedule-free optimizers and Prodigy do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.defaults["k"] = 0
        for group in self.param_groups:
            group["k"] = 0


def test_counters_in_the_optimizer_s_groups_are_state(tmp_path: Path) -> None:
    model = network()
    run = a_run(tmp_path, model, ScheduleFree(model.parameters()))
    run.state.optimizer.param_groups[0]["k"] = 7
    state = stored(run, tmp_path / "x.pth")
    model = network()
    again = a_run(tmp_path, model, ScheduleFree(model.parameters(), lr=0.2))
    contents.restore(again, state)
    assert again.state.optimizer.param_groups[0]["k"] == 7
    assert again.state.optimizer.param_groups[0]["lr"] == 0.2


def test_the_scaler_and_the_schedule_come_back(tmp_path: Path) -> None:
    class Plateau(SimpleNamespace):
        def state_dict(self) -> dict[str, Any]:
            return {"waited": self.waited}

        def load_state_dict(self, state: Any) -> None:
            self.waited = state["waited"]

    run = a_run(tmp_path, scaler=torch.amp.GradScaler("cpu", init_scale=8.0), schedule=Plateau(waited=4))
    state = stored(run, tmp_path / "x.pth")
    again = a_run(tmp_path, scaler=torch.amp.GradScaler("cpu"), schedule=Plateau(waited=0))
    contents.restore(again, state)
    assert again.state.scaler is not None
    assert again.state.scaler.get_scale() == 8.0
    assert again.schedule.waited == 4  # type: ignore[attr-defined]


class OtherFeed(Feed):
    """Other classes, or another length of an epoch."""

    def __init__(self, classes: tuple[str, ...] = Feed.classes, steps_per_epoch: int = 3) -> None:  # type: ignore[assignment]
        super().__init__(World(torch.device("cpu")))
        self.classes, self.steps_per_epoch = classes, steps_per_epoch  # type: ignore[misc]


def wide() -> nn.Module:
    return nn.Sequential(*list(network())[:-1], nn.Linear(4, 5))


def deep() -> nn.Module:
    return nn.Sequential(*network(), nn.Linear(3, 3))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def split(model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    return torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}])


def turned(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(model.parameters())[::-1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"model": wide},
        r"2 of another shape: 6.weight \(3, 4\) in the checkpoint, \(5, 4\) in the model, 6.bias",
    ),
    "depth": ({"model": deep}, r"another model than .*Sequential.*2 missing: 7.weight, 7.bias.*resume=false load_from"),
    "number of classes": ({"data": OtherFeed(("a", "b"))}, r"a run with 3 classes, data has 2"),
    "class names": ({"data": OtherFeed(("a", "x", "c"))}, r"whose class 1 was 'b', in data it is 'x'"),
    "optimizer": ({"optimizer": sgd}, r"the state of torch.optim.adamw.AdamW, optim is torch.optim.sgd.SGD"),
    "groups": ({"optimizer": split}, r"other parameter groups .*group 0: 0.weight, 0.bias.* before, 0.weight now"),
    "order": ({"optimizer": turned}, r"other parameter groups"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_changed(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = stored(trained(tmp_path), tmp_path / "x.pth")
    model = change.get("model", network)()
    optimizer = change.get("optimizer", optimizer_of)(model)
    fields = {"data": change["data"]} if "data" in change else {}
    again = a_run(tmp_path, model, optimizer, **fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        contents.restore(again, state, "x.pth")
    assert str(caught.value).startswith("x.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert again.state.progress.step == 0


def test_another_batch_size_only_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    run = trained(tmp_path)
    state = stored(run, tmp_path / "x.pth")
    (note,) = contents.restore(a_run(tmp_path, data=OtherFeed(steps_per_epoch=6)), state)
    assert note.startswith("an epoch has 6 steps instead of 3 (data.batch_size")
    run.state.progress.batch = 2
    state = stored(run, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"in the middle of an epoch \(batch 2\), and an epoch has 6 steps"):
        contents.restore(a_run(tmp_path, data=OtherFeed(steps_per_epoch=6)), state)


def test_changes_that_are_allowed_are_said(tmp_path: Path) -> None:
    state = stored(trained(tmp_path), tmp_path / "x.pth")
    again = a_run(tmp_path, seed=9, scaler=torch.amp.GradScaler("cpu"))
    again.hooks = {"other": Counter()}
    notes = contents.restore(again, {**state, "world_size": 2})
    assert notes == [
        "1 process(es) instead of 2: not bit-identical",
        "randomness.seed is 9 instead of 1: order and augmentation change from here",
        "train.amp changed: the loss scale starts anew",
        "hooks.other is new: it starts without a history",
        "hooks.counter is gone: its state is dropped",
    ]


def test_weights_only_and_foreign_files_cannot_be_resumed_from(tmp_path: Path) -> None:
    run = trained(tmp_path)
    state = stored(run, tmp_path / "x.pth", with_optimizer=False)
    with pytest.raises(CheckpointError, match=r"x.pth holds weights only .*resume=false load_from=x.pth"):
        contents.restore(run, state, "x.pth")
    torch.save(run.state.model.state_dict(), tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"y.pth is not a checkpoint of this program.*resume=false load_from"):
        contents.load(tmp_path / "y.pth")
    torch.save(contents.collect(run) | {"format": 99}, tmp_path / "z.pth")
    with pytest.raises(CheckpointError, match=r"z.pth has format 99, this program reads up to 1: update it"):
        contents.load(tmp_path / "z.pth")


def test_a_module_s_format_version_survives(tmp_path: Path) -> None:
    state = stored(trained(tmp_path), tmp_path / "x.pth")
    assert state["model_metadata"]["1"] == {"version": 2}  # of batch norm: without it, num_batches_tracked is reset


def test_a_file_without_a_newer_field_is_restored_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new field is one entry of FIELDS: files of version 0.1 do not have it."""
    run = trained(tmp_path)
    old = stored(run, tmp_path / "old.pth")
    del old["evaluated"]  # the one that came after 0.1
    assert contents.restore(a_run(tmp_path), old) == []
    lucky = contents.Field(lambda run: 7, lambda run, state: [f"lucky {state['lucky']}"])
    monkeypatch.setitem(contents.FIELDS, "lucky", lucky)
    (note,) = contents.restore(a_run(tmp_path), old, "old.pth")
    assert note == "old.pth is of an older version and holds no lucky: it begins anew"
    assert contents.restore(a_run(tmp_path), stored(run, tmp_path / "new.pth")) == ["lucky 7"]


def test_the_origin_of_a_run_is_in_its_checkpoints(tmp_path: Path) -> None:
    run = a_run(tmp_path, origin={"versions": {"torch": "9"}, "git_commit": "abc"})
    state = stored(run, tmp_path / "x.pth")
    assert (state["versions"], state["git_commit"]) == ({"torch": "9"}, "abc")
