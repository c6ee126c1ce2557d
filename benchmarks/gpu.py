"""Throughput on a GPU against bare loops. Needs a GPU and nothing else: all images are synthetic.

python -m benchmarks --only gpu
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.clock import train
from benchmarks.measure import Section, interleaved, ratio, spread

HEADER = ("case", "bare loop, images/s", "app, images/s", "app / bare loop")
CASES: dict[str, dict[str, Any]] = {
    "MLP 1x28x28, batch 128, float32": {
        "overrides": ["model=mlp", "model.hidden=[128]"], "shape": (1, 28), "classes": 10, "batch": 128,
        "steps": 400, "amp": None, "compile": False,
    },
    "ResNet-18 (CIFAR stem) 3x32x32, batch 512, bf16, channels-last, compiled, data on the device": {
        "overrides": ["model=resnet_cifar"], "shape": (3, 32), "classes": 10, "batch": 512,
        "steps": 100, "amp": "bf16", "compile": True,
    },
    "ResNet-50 3x224x224, batch 128, bf16, channels-last": {
        "overrides": ["model=torchvision", "model.name=resnet50"], "shape": (3, 224), "classes": 1000, "batch": 128,
        "steps": 30, "amp": "bf16", "compile": False,
    },
}  # fmt: skip


def gpu(quick: bool) -> Section:
    """The section of the report."""
    section = Section(
        "GPU",
        "Training images per second, evaluations left out, compilation done before; the bare loop has its batches on "
        "the device already. Goal: >= 0.99 of the bare loop.",
        HEADER,
    )
    if not torch.cuda.is_available():
        section.rows += [[title, "not obtained", "not obtained", "not obtained"] for title in CASES]
        section.notes.append("There was no GPU where this was run.")
        return section
    section.notes.append(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}.")
    for title, case in CASES.items():
        times = interleaved({"bare": partial(bare, case), "ours": partial(ours, case)}, 3 if quick else 5)
        section.rows.append(
            [
                title,
                spread(times["bare"], digits=0),
                spread(times["ours"], digits=0),
                ratio(times["ours"], times["bare"], 3),
            ]
        )
    return section


def ours(case: dict[str, Any]) -> float:
    """Images per second of the app in the epochs after the first."""
    channels, side = case["shape"]
    amp = [f"train.amp={case['amp']}"] if case["amp"] else []
    training = train(
        *case["overrides"], *amp, f"env.compile={str(case['compile']).lower()}", "env.device=cuda", "data=fake",
        f"data.size={case['steps'] * case['batch']}", "data.val_size=256", f"data.num_classes={case['classes']}",
        f"data.channels={channels}", f"data.image_size={side}", f"data.batch_size={case['batch']}", "optim=sgd",
        "optim.lr=0.01", "train.max_epochs=3", "randomness.seed=3",
    )  # fmt: skip
    first, last = training.marks[1], training.marks[-1]
    return (last.step - first.step) * case["batch"] / (last.wall_seconds - first.wall_seconds)


def bare(case: dict[str, Any]) -> float:
    """Images per second of the least that has to be done, after as many steps of warming up."""
    channels, side = case["shape"]
    device = torch.device("cuda")
    images = torch.randn(case["batch"], channels, side, side, device=device)
    targets = torch.randint(0, case["classes"], (case["batch"],), device=device)
    model = network(case).to(device)
    if case["amp"]:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    if case["compile"]:
        model.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    dtype = torch.bfloat16 if case["amp"] == "bf16" else None

    def steps() -> float:
        begin = perf_counter()
        for _ in range(case["steps"]):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.cuda.synchronize()
        return case["steps"] * case["batch"] / (perf_counter() - begin)

    steps()
    return steps()


def network(case: dict[str, Any]) -> nn.Module:
    """The model of a case, by hand."""
    from torchvision.models import resnet50

    from app.models.mlp import MLP
    from app.models.resnet_cifar import resnet_cifar

    makers: list[Callable[[], nn.Module]] = [
        lambda: MLP(10, 1, 28, hidden=(128,)),
        lambda: resnet_cifar(num_classes=10, in_channels=3),
        lambda: resnet50(num_classes=1000),
    ]
    return makers[list(CASES.values()).index(case)]()
