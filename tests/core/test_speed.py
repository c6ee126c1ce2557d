"""The speed switches: layout, compilation, and the line that says what was chosen."""

from pathlib import Path

import pytest
import torch
from runs import RunApp, digest
from torch import nn

from app.checkpoint import contents
from app.core.speed import describe, set_layout

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECIPE = (
    "model=mlp",
    "model.hidden=[4]",
    "data.limit_train=10",
    "data.limit_val=6",
    "data.batch_size=4",
    "train.max_epochs=3",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.max_keep_ckpts=-1",
    "randomness.seed=3",
    "env.compile=true",
)
STEPS = 9
"""3 epochs of two batches of 4 and a short one of 2."""


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def is_channels_last(model: nn.Sequential) -> bool:
    return model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("setting", "device", "amp", "expected"),
    [
        (True, CPU, None, True),
        (False, CUDA, "bf16", False),
        ("auto", CPU, "bf16", False),
        ("auto", CUDA, None, False),
        ("auto", CUDA, "bf16", True),
    ],
)
def test_layout_is_chosen_where_it_is_always_right(
    setting: bool | str, device: torch.device, amp: str | None, expected: bool
) -> None:
    model = layers()
    set_layout(model, setting, device, amp)
    assert is_channels_last(model) is expected


def test_false_undoes_the_layout_of_a_model_and_auto_leaves_it() -> None:
    model = layers().to(memory_format=torch.channels_last)
    set_layout(model, "auto", CPU, None)
    assert is_channels_last(model)
    set_layout(model, False, CPU, None)
    assert not is_channels_last(model)


def test_the_line_says_what_was_chosen() -> None:
    model = layers()
    fused = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    line = describe(model, fused, images="images held on cpu", compiled=False, amp=None)
    assert line == (
        "speed: images held on cpu, channels-first convolutions, no autocast, fused optimizer step, not compiled"
    )
    model.to(memory_format=torch.channels_last)
    stock = torch.optim.SGD(model.parameters(), lr=0.1)
    line = describe(model, stock, images="images read by 2 workers", compiled=True, amp="bf16")
    assert line == (
        "speed: images read by 2 workers, channels-last convolutions, bf16, plain optimizer step, compiled (default)"
    )


def test_a_compiled_run_resumes_exactly_and_its_checkpoint_fits_an_uncompiled_model(run_app: RunApp) -> None:
    whole = run_app("whole", *RECIPE)
    resumed = run_app("resumed", *RECIPE, f"resume={whole}/checkpoints/iter_4.pth")
    assert weights(resumed) == weights(whole)
    assert "compiled (default)" in (whole / "app.log").read_text()
    names = contents.load(whole / "checkpoints" / f"iter_{STEPS}.pth")["model"]
    assert set(names) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def weights(folder: Path) -> str:
    return digest(contents.load(folder / "checkpoints" / f"iter_{STEPS}.pth")["model"])
