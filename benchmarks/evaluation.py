"""An evaluation of 10,000 samples and 1,000 classes with all its metrics, against the model's forward alone."""

from __future__ import annotations

from time import process_time

import torch

from app.engine.loop import autocast_for, evaluate
from benchmarks.clock import train
from benchmarks.measure import Section, interleaved, ratio, spread

SAMPLES, CLASSES = 10_000, 1_000


def evaluation(quick: bool) -> Section:
    """The section of the report."""
    rounds = 3 if quick else 5
    training = train(
        "data=fake", "data.size=1000", f"data.val_size={SAMPLES}", f"data.num_classes={CLASSES}", "data.image_size=32",
        "data.channels=3", "model=small_cnn", "metrics.topk=[1,5]", "train.max_epochs=1", "env.device=cpu",
        "env.mp.num_threads=1", "randomness.seed=3",
    )  # fmt: skip
    run = training.run
    assert run is not None
    torch.set_num_threads(1)

    def forward() -> float:
        begin = process_time()
        run.state.model.eval()
        with torch.inference_mode():
            for batch in run.data.evaluate("val"):
                assert batch is not None
                run.state.model(batch.images)
        return process_time() - begin

    def everything() -> float:
        begin = process_time()
        evaluate(run, "val", autocast_for(None, run.world.device))
        return process_time() - begin

    times = interleaved({"forward": forward, "everything": everything}, rounds)
    extra = [whole - alone for whole, alone in zip(times["everything"], times["forward"], strict=True)]
    return Section(
        "Evaluation",
        f"CPU seconds of one evaluation of {SAMPLES:,} images of 3x32x32 and {CLASSES:,} classes: loss, top-1, top-5, "
        "precision, recall, F1 (macro), the table of classes and the confusion matrix, against the forward passes "
        "alone; the default SmallCNN (10 million multiplications an image: a small model, so a large share for the "
        f"metrics), one thread; the median of {rounds} interleaved rounds (least to greatest). Goal: <= 1.10.",
        ("forward alone, s", "evaluation, s", "evaluation / forward", "metrics, s"),
        [
            [
                spread(times["forward"], digits=2),
                spread(times["everything"], digits=2),
                ratio(times["everything"], times["forward"]),
                spread(extra, digits=2),
            ]
        ],
    )
