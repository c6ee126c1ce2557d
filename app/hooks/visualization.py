"""Pictures of predictions on a fixed set of validation images, so that change is visible from one to the next."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from app.config.schema.hooks import VisualizationConf
from app.core.clock import due
from app.core.hook import Hook
from app.core.state import Run
from app.metrics.metrics import Evaluation
from app.visualizer import draw

logger = logging.getLogger(__name__)


class Visualization(VisualizationConf, Hook):
    """Draws what the evaluation already computed: no second forward pass.

    To all visualizer backends go `phase/predictions` (and `phase/worst`), single pictures, and `…_grid`, all on
    one sheet.
    """

    def __post_init__(self) -> None:
        self.evaluations = 0

    def attach(self, run: Run) -> None:
        if self.enable and self.show and run.world.is_main and not has_display():
            logger.warning("hooks.visualization.show=true: there is no display here, no window is opened")
            self.show = False

    def eval_end(self, run: Run, metrics: dict[str, float]) -> None:
        self.evaluations += 1
        evaluation = run.evaluation
        if not (self.enable and run.world.is_main and due(self.evaluations, self.interval)) or evaluation is None:
            return
        fixed = draw.sample_indices(len(evaluation.losses), self.max_images)
        self.draw_samples(run, evaluation, "predictions", fixed, "the same images every time")
        if self.worst:
            losses = evaluation.losses.nan_to_num(nan=float("inf"))
            greatest = torch.argsort(losses, descending=True, stable=True)[: self.worst]
            self.draw_samples(run, evaluation, "worst", greatest.tolist(), "greatest loss first")

    def draw_samples(self, run: Run, evaluation: Evaluation, kind: str, indices: Sequence[int], note: str) -> None:
        """Draws the samples at `indices` and hands them on."""
        images = run.data.sample_images(run.phase, indices).cpu().numpy()
        tiles, captions = [], []
        for image, index in zip(images, indices, strict=True):
            answer, score, truth, right = verdict(evaluation, index, run.data.classes)
            extra = f", loss {float(evaluation.losses[index]):.2f}" if kind == "worst" else ""
            tiles.append(draw.tile(image, answer, score, truth, right, self.rescale_factor))
            captions.append(f"{'right' if right else 'wrong'}: {answer} {score}, truth {truth}{extra}, sample {index}")
        title = f"{run.phase} {kind}{where(run)} ({note})"
        sheet = draw.grid(tiles, title)
        step = run.state.progress.step
        run.visualizer.images(f"{run.phase}/{kind}", tiles, captions, step)
        run.visualizer.images(f"{run.phase}/{kind}_grid", [sheet], [title], step)
        if self.out_dir is not None:
            self.write(run, kind, indices, tiles)
        if self.show:
            from PIL import Image

            Image.fromarray(sheet).show(title)

    def write(self, run: Run, kind: str, indices: Sequence[int], tiles: Sequence[draw.Picture]) -> None:
        """One file a picture, named by run, phase, kind, step and sample: none overwrites another."""
        from PIL import Image

        assert self.out_dir is not None
        folder = Path(self.out_dir, run.folder.parent.name, run.folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in zip(indices, tiles, strict=True):
            name = f"{run.phase}_{kind}_step_{run.state.progress.step}_sample_{index}.png"
            Image.fromarray(picture).save(folder / name)

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluations = state["evaluations"]


def verdict(evaluation: Evaluation, index: int, classes: Sequence[str]) -> tuple[str, str, str, bool]:
    """Prediction, its score, the truth and whether they agree, for the sample at `index` of the split.

    With several labels an image: the likeliest label, and right when it is among the true ones.
    """
    predicted = int(evaluation.predictions[index, 0])
    target = evaluation.targets[index]
    true = [int(target)] if target.ndim == 0 else torch.nonzero(target > 0.5).flatten().tolist()
    truth = ", ".join(classes[label] for label in true) or "none"
    return classes[predicted], f"{100 * float(evaluation.scores[index]):.0f} %", truth, predicted in true


def where(run: Run) -> str:
    """`, epoch 3, step 69`; nothing for a test, which has no place in training."""
    progress = run.state.progress
    return "" if run.phase == "test" else f", epoch {progress.epoch}, step {progress.step}"


def has_display() -> bool:
    """False on a machine without a screen."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
