"""Evaluates random images of several sizes on the ranks that torchrun started; rank 0 prints the result to the bit."""

import dataclasses
import json
import sys
from typing import Any

import torch
from torch import nn

from app.config.schema.data import DataConf
from app.config.schema.model import MetricsConf
from app.config.schema.runtime import EnvConf
from app.core import ranks
from app.data.feed import Feed
from app.data.source import ImageTensor, Splits
from app.metrics.losses import cross_entropy
from app.metrics.metrics import Metrics

SIZES = (1, 7, 1001, 10_000)
CLASSES = [str(label) for label in range(10)]


def measure(world: ranks.World) -> dict[int, Any]:
    """Metrics (as hexadecimal floats) and confusion counts by size of the validation split."""
    settings = {**dataclasses.asdict(DataConf()), "eval_batch_size": 128}
    metrics_conf = {**dataclasses.asdict(MetricsConf()), "topk": [1, 5]}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    found = {}
    for size in SIZES:
        generator = torch.Generator().manual_seed(size)
        images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
        source = ImageTensor(images, torch.randint(10, (size,), generator=generator))
        train = ImageTensor(torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
        feed = Feed(Splits(train, source, CLASSES), settings, world=world, seed=0)
        metrics = Metrics(metrics_conf, CLASSES, multi_label=False, loss=cross_entropy(reduction="none"))
        metrics.start(feed.eval_size("val"))
        with torch.inference_mode():
            for batch in feed.evaluate("val"):
                if batch is not None:
                    metrics.update(model(batch.images), batch.targets, batch.indices)
        evaluation = metrics.compute(world)
        assert evaluation.confusion is not None
        found[size] = {name: value.hex() for name, value in evaluation.metrics.items()}
        found[size]["confusion"] = evaluation.confusion.tolist()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = dataclasses.asdict(EnvConf(device="cpu"))
    with ranks.connected(settings) as connected:
        result = measure(connected)
        if connected.is_main:
            print(json.dumps(result))
    sys.exit(0)
