from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Feed, make, network, tiny_run
from torch import nn

from app.config.schema.hooks import ClassNumCheckConf
from app.core.ranks import World
from app.core.state import Run
from app.errors import ConfigError


def check(run: Run, **model: Any) -> None:
    run.config["model"] = {"_target_": "my.Net", **model}
    make(ClassNumCheckConf()).attach(run)


def test_a_model_that_fits_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body(images + torch.rand_like(images) + random.random() + float(np.random.rand()))  # type: ignore[no-any-return]

    run = tiny_run(tmp_path, model=Noisy())
    run.state.model.body[5].eval()  # type: ignore[union-attr, index]
    before = [buffer.clone() for buffer in run.state.model.buffers()]
    modes = [module.training for module in run.state.model.modules()]
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    check(run)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()
    assert random.getstate() == drawn[2]
    assert all(torch.equal(*pair) for pair in zip(run.state.model.buffers(), before, strict=True))
    assert [module.training for module in run.state.model.modules()] == modes
    assert all(parameter.grad is None for parameter in run.state.model.parameters())


@pytest.mark.parametrize("outputs", [2, 1000])
def test_another_number_of_outputs(outputs: int, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, model=network(classes=outputs))
    with pytest.raises(ConfigError) as caught:
        check(run)
    assert caught.value.exit_code == 64
    assert f"the model has {outputs} outputs, but the data set has 3 classes (a, b, c)" in str(caught.value)
    assert "model.num_classes=3" in str(caught.value)


def test_another_number_of_channels(tmp_path: Path) -> None:
    world = World(torch.device("cpu"))
    run = tiny_run(tmp_path, data=Feed(world, channels=3))
    with pytest.raises(ConfigError, match=r"takes images of 1 channel.*tests.feed.* yields 3 .*model.in_channels=3"):
        check(run)


def test_images_that_are_too_small(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, model=nn.Sequential(nn.Conv2d(1, 4, 9), nn.Flatten(), nn.Linear(4, 3)))
    with pytest.raises(ConfigError, match=r"my.Net cannot take .* 1 channel\(s\) and 6x6 pixels .*data.image_size"):
        check(run)
    assert run.state.model.training


def test_a_layer_that_wants_another_size(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(49, 3)))
    with pytest.raises(ConfigError, match=r"mat1 and mat2 shapes cannot be multiplied"):
        check(run)


def test_something_else_than_class_scores(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return images, images

    with pytest.raises(ConfigError, match=r"my.Net returns tuple for one image"):
        check(tiny_run(tmp_path, model=nn.Sequential(nn.Linear(6, 6), Pair())))
    with pytest.raises(ConfigError, match=r"my.Net returns \(1, 4, 4, 4\) for one image"):
        check(tiny_run(tmp_path, model=network()[:2]))  # type: ignore[index, arg-type]
