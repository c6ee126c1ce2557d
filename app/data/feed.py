"""Feeds a data set to the engine: in order, split over ranks, augmented, normalised, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from app.config.schema.augment import parse_augment, parse_batch_augment
from app.core import rng
from app.core.ranks import World
from app.core.state import Batch, StepBatch
from app.data.augment import build_augmentation
from app.data.hold import hold, should_hold, spare_workers
from app.data.loader import LoaderPart, checked
from app.data.memory import MemoryPart
from app.data.mix import build_mixing
from app.data.normalize import Normalize
from app.data.order import Plan, evaluation_rounds
from app.data.part import Part
from app.data.reader import Reader, Request
from app.data.source import ImageFiles, ImageTensor, Source, Splits, check_targets, take
from app.errors import ConfigError, DataError

MOST_CLASSES = 200_000
"""The size of a model follows from this number, which is taken from data; ImageNet-22k has 21,841."""


def build_feed(
    splits: Splits,
    settings: Mapping[str, Any],
    *,
    world: World,
    seed: int,
    accumulate: int = 1,
    start_method: str = "fork",
) -> Feed:
    """The feed of `splits` as the keys of DataConf in `settings` say.

    Raises:
        ConfigError: settings that contradict each other or the data.
        DataError: labels that are no class, unreadable samples.
    """
    if settings["batch_size"] < world.size:
        raise ConfigError(
            f"data.batch_size={settings['batch_size']} must be at least the number of processes, {world.size}"
        )
    sources: dict[str, Source] = {"train": take(splits.train, settings["limit_train"])}
    sources["val"] = take(splits.val, settings["limit_val"])
    if splits.test is not None and splits.test is not splits.val:
        sources["test"] = splits.test
    if len(splits.classes) > MOST_CLASSES:
        raise DataError(f"data: {len(splits.classes):,} classes are more than the {MOST_CLASSES:,} that are believed")
    for split, source in sources.items():
        check_targets(source, splits.classes, split)
    return Feed(sources, splits, dict(settings), world, seed, accumulate, start_method)


class Feed:
    """A data set as the engine sees it (app.core.state.DataFeed)."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        splits: Splits,
        settings: dict[str, Any],
        world: World,
        seed: int,
        accumulate: int,
        start_method: str,
    ) -> None:
        self.classes: Sequence[str] = list(splits.classes)
        self._settings, self._world, self._seed, self._start_method = settings, world, seed, start_method
        self._sources = sources
        self._shape, self.multi_label = self._look_at(sources["train"])
        self.channels, self.image_size = self._shape[0], self._shape[-1]
        self.set_recipe(settings["augment"], settings["batch_augment"])
        self._normalize = Normalize(*self._statistics(splits), world.device, settings["pin_memory"])
        self._parts: dict[tuple[str, bool], Part] = {}
        """By split, and whether its images are held in memory."""
        self._holdable: dict[str, bool] = {}
        self.train_size = len(sources["train"])
        self._plan = Plan(
            size=self.train_size * settings["repeats"],
            batch_size=settings["batch_size"],
            accumulate=accumulate,
            drop_last=settings["drop_last"],
            rank=world.rank,
            world=world.size,
        )
        self.steps_per_epoch = self._plan.steps
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"data.drop_last=true leaves 0 steps an epoch: {self._plan.size} training samples are fewer than the "
                f"{self._plan.step_samples} of a step (data.batch_size={settings['batch_size']} x "
                f"train.accumulate={accumulate}); lower data.batch_size or set data.drop_last=false"
            )
        self.smallest_batch = self._plan.smallest_batch
        """Images of the smallest forward pass of an epoch: batch norm cannot train on 1."""

    @property
    def placement(self) -> str:
        """Where the training images come from, in words."""
        return self._part("train").placement

    def train(self, epoch: int, start: int) -> Iterator[StepBatch]:
        """See DataFeed."""
        recipe, batch_recipe = self._recipe, self._batch_recipe
        mixing = build_mixing(batch_recipe, self._seed, len(self.classes)) if batch_recipe else None
        order = rng.order(self._plan.size, self._seed, epoch, self._settings["shuffle"])
        repeated = self._settings["repeats"] > 1
        part = self._part("train")
        self._part("val")  # what is wrong with it shows before the first step, not after the first epoch
        loaded = part.train(self._plan.micros(order, start), epoch, recipe)
        for step in range(start, self._plan.steps):
            batches = []
            for micro, images, targets in islice(loaded, self._plan.micro_count(step)):
                if mixing is not None:
                    images, targets = mixing(images, targets, epoch, micro.number)
                indices = micro.indices % self.train_size if repeated else micro.indices
                batches.append(Batch(images, targets, indices, micro.size))
            yield StepBatch(batches, self._plan.step_size(step))

    def evaluate(self, split: str) -> Iterator[Batch | None]:
        """See DataFeed."""
        part = self._part(split)
        rounds = evaluation_rounds(len(part), self._settings["eval_batch_size"], self._world.rank, self._world.size)
        for loaded in part.evaluate(rounds):
            if loaded is None:
                yield None
            else:
                place, images, targets = loaded
                yield Batch(images, targets, torch.arange(place.start, place.stop), len(place))

    def eval_size(self, split: str) -> int:
        """Samples of `val` or `test`."""
        return len(self._sources.get(split, self._sources["val"]))

    def sample_images(self, split: str, indices: Sequence[int]) -> torch.Tensor:
        """See DataFeed."""
        return self._part(split).images(indices)

    def sample_targets(self, split: str, indices: Sequence[int]) -> torch.Tensor:
        """The targets of some samples, on the CPU."""
        return self._part(split).targets(indices)

    def set_recipe(self, augment: Any, batch_augment: Any) -> None:
        """Changes the training augmentation from the next epoch that `train` starts.

        Raises:
            ConfigError: unknown names or arguments.
        """
        self._recipe, self._batch_recipe = parse_augment(augment), parse_batch_augment(batch_augment)
        blank = torch.zeros(
            (1, *self._shape), dtype=torch.uint8
        )  # what torchvision refuses shows here, not in a worker
        build_augmentation(self._recipe, self._seed)(blank, torch.tensor([0]), 0)
        if "resized_crop" in dict(self._recipe):
            self._check_crop(self._sources["train"])

    def close(self) -> None:
        """Ends the loader workers."""
        for part in self._parts.values():
            part.close()

    def _check_crop(self, source: Source) -> None:
        """Raise ConfigError where `resized_crop` has nothing to resize to, or no whole images to crop."""
        if isinstance(source, ImageTensor):
            return
        if self._settings["image_size"] is None:
            raise ConfigError("data.augment.resized_crop needs data.image_size, the side that it resizes to")
        cached = isinstance(source, ImageFiles) and source.cache
        if cached or self._settings["in_memory"] is True:
            key, instead = ("cache=true", "cache=false") if cached else ("in_memory=true", "in_memory=auto")
            raise ConfigError(
                f"data.{key} holds images as evaluation sees them, resized and cut to the centre, but "
                f"data.augment.resized_crop cuts its part out of whole images; set data.{instead}, so that "
                "data.num_workers processes read them, or use crop instead"
            )

    def _part(self, split: str) -> Part:
        """Made when first needed: a test opens no training images."""
        split = split if split in self._sources else "val"
        source = self._sources[split]
        if split not in self._holdable:
            self._holdable[split] = should_hold(source, self._settings["in_memory"], self._settings["image_size"])
        # Of files, what is held is the centre that evaluation sees, and a random crop needs the whole image.
        cropped = split == "train" and not isinstance(source, ImageTensor) and "resized_crop" in dict(self._recipe)
        key = split, self._holdable[split] and not cropped
        if key not in self._parts:
            self._parts[key] = self._make_part(source, held=key[1], training=split == "train")
        return self._parts[key]

    def _look_at(self, source: Source) -> tuple[tuple[int, ...], bool]:
        """The shape of what the model gets, and whether it is multi-label data, from the first sample."""
        if isinstance(source, ImageTensor):
            images, targets = source.images, source.targets
        else:
            images, targets, *_ = checked(self._reader(source)[Request([0])])
        side = self._settings["image_size"]
        shape = tuple(images.shape[1:]) if side is None else (images.shape[1], side, side)
        return shape, targets.ndim == 2

    def _statistics(self, splits: Splits) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per channel: configured, the data set's own, or 0.5."""
        found = []
        for key, own in (("mean", splits.mean), ("std", splits.std)):
            values = self._settings[key] or own or [0.5]
            if len(values) not in (1, self.channels):
                raise ConfigError(
                    f"data.{key} must have 1 or {self.channels} numbers, one per channel, got {list(values)}"
                )
            found.append(list(values))
        if min(found[1]) <= 0:
            raise ConfigError(f"data.std must be > 0, got {found[1]}")
        return found[0], found[1]

    def _reader(self, source: Source) -> Reader:
        settings = self._settings
        return Reader(
            source,
            seed=self._seed,
            side=self._settings["image_size"],
            num_classes=len(self.classes),
            on_error=settings["on_error"],
            max_errors=settings["max_errors"],
        )

    def _loader(self, source: Source, num_workers: int) -> LoaderPart:
        settings = self._settings
        return LoaderPart(
            self._reader(source),
            num_workers=num_workers,
            timeout_seconds=settings["timeout"],
            start_method=self._start_method,
            max_errors=settings["max_errors"],
            normalize=self._normalize,
        )

    def _make_part(self, source: Source, held: bool, training: bool) -> Part:
        num_workers = self._settings["num_workers"]
        if not held:
            return self._loader(source, num_workers)
        if not isinstance(source, ImageTensor):
            loader = self._loader(source, num_workers or spare_workers(len(source), self._world.size))
            try:
                source = hold(source, loader, self._settings["image_size"], self._settings["on_error"], training)
            finally:
                loader.close()
        return MemoryPart(
            source,
            seed=self._seed,
            side=self._settings["image_size"],
            device=self._world.device,
            resident=self._resident(source.images),
            normalize=self._normalize,
        )

    def _resident(self, images: torch.Tensor) -> bool:
        wanted: bool | str = self._settings["device_resident"]
        device = self._world.device
        if wanted != "auto" or device.type != "cuda":
            return bool(wanted)
        return images.nbytes < torch.cuda.get_device_properties(device).total_memory / 5
