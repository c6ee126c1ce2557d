"""Feeds a data set to the engine: in order, split over ranks, augmented, normalised, on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from app.config.schema.augment import parse_augment, parse_batch_augment
from app.core import rng
from app.core.ranks import World
from app.core.state import Batch, StepBatch
from app.data.augment import Augmenter, Make, build_augmentation, crop_of_files
from app.data.fetch import Fetcher
from app.data.hold import hold, should_hold, spare_workers
from app.data.memory_reader import MemoryReader
from app.data.mix import build_mixing
from app.data.normalize import Normalize
from app.data.order import Plan, Request, evaluation_rounds
from app.data.reader import Reader
from app.data.source import ImageFiles, ImageTensor, Source, Splits, sources_of
from app.data.worker_reader import WorkerReader, checked
from app.data.workers import Workers
from app.errors import ConfigError


class Feed:
    """A data set as the engine sees it (app.core.state.DataFeed), fed as the keys of DataConf in `settings` say.

    `make` gives the object of a mapping with `_target_`: transforms of one's own, built in each process that needs one.

    Raises:
        ConfigError: settings that contradict each other or the data.
        DataError: labels that are no class, unreadable samples.
    """

    def __init__(
        self,
        splits: Splits,
        settings: Mapping[str, Any],
        *,
        world: World,
        seed: int,
        accumulate: int = 1,
        start_method: str = "fork",
        make: Make | None = None,
    ) -> None:
        self._settings, self._world, self._seed, self._make = settings, world, seed, make
        self._new_workers = functools.partial(Workers, timeout_seconds=settings["timeout"], start_method=start_method)
        self._readers: dict[tuple[str, bool], Reader] = {}
        """By part, and whether its images are held in memory."""
        self._holdable: dict[str, bool] = {}
        self._sources = sources_of(splits, settings["limit_train"], settings["limit_val"])
        self.classes: Sequence[str] = list(splits.classes)
        self.train_size = len(self._sources["train"])
        self._plan = self._planned(accumulate)
        self.steps_per_epoch = self._plan.steps
        self.smallest_batch = self._plan.smallest_batch
        """Images of the smallest forward pass of an epoch: batch norm cannot train on 1."""
        self._shape, self.multi_label = self._look_at(self._sources["train"])
        self.channels, self.image_size = self._shape[0], self._shape[-1]
        self._normalize = Normalize(*self._statistics(splits), world.device, settings["pin_memory"])
        self.set_recipe(settings["augment"], settings["batch_augment"])

    @property
    def placement(self) -> str:
        """Where the training images come from, in words."""
        return self._reader("train").placement

    def train(self, epoch: int, start: int) -> Iterator[StepBatch]:
        """See DataFeed."""
        mixing = build_mixing(self._batch_recipe, self._seed, len(self.classes)) if self._batch_recipe else None
        order = rng.order(self._plan.size, self._seed, epoch, self._settings["shuffle"])
        reader = self._reader("train")
        self._reader("val")  # what is wrong with it shows before the first step, not after the first epoch
        batches = reader.read(self._plan.requests(order, start, epoch, self._recipe))
        numbered = enumerate(batches, start * self._plan.accumulate)
        for step in range(start, self._plan.steps):
            micros = []
            for number, batch in islice(numbered, self._plan.micro_count(step)):
                images, targets, entries, size = batch
                if mixing is not None:
                    images, targets = mixing(images, targets, epoch, number)
                micros.append(Batch(images, targets, entries % self.train_size, size))
            yield StepBatch(micros, self._plan.step_size(step))

    def evaluate(self, split: str) -> Iterator[Batch | None]:
        """See DataFeed."""
        size, world = self.eval_size(split), self._world
        rounds = list(evaluation_rounds(size, self._settings["eval_batch_size"], world.rank, world.size))
        own = (torch.arange(part.start, part.stop) for part in rounds if part is not None)
        yield from self._reader(split).read(Request(indices, len(indices)) for indices in own)
        yield from (None for part in rounds if part is None)  # only ever the last

    def eval_size(self, split: str) -> int:
        """Samples of `val` or `test`."""
        return len(self._sources.get(split, self._sources["val"]))

    def sample_images(self, split: str, indices: Sequence[int]) -> torch.Tensor:
        """See DataFeed."""
        return self._reader(split).images(indices)

    def set_recipe(self, augment: Any, batch_augment: Any) -> None:
        """Change the training augmentation from the next epoch that `train` starts.

        Raises:
            ConfigError: unknown names or arguments.
        """
        self._recipe, self._batch_recipe = parse_augment(augment), parse_batch_augment(batch_augment)
        blank = torch.zeros((1, *self._shape), dtype=torch.uint8)
        # What torchvision or a class of one's own refuses shows here, not in a worker.
        build_augmentation(self._recipe, self._seed, make=self._make)(blank, torch.tensor([0]), 0)
        if crop_of_files(self._recipe) is not None:
            self._check_crop(self._sources["train"])

    def close(self) -> None:
        """End the loader workers."""
        for reader in self._readers.values():
            reader.close()

    def _planned(self, accumulate: int) -> Plan:
        settings, world = self._settings, self._world
        batch_size = settings["batch_size"]
        if batch_size < world.size:
            raise ConfigError(f"data.batch_size={batch_size} must be at least the number of processes, {world.size}")
        plan = Plan(
            size=self.train_size * settings["repeats"],
            batch_size=batch_size,
            accumulate=accumulate,
            drop_last=settings["drop_last"],
            rank=world.rank,
            world=world.size,
        )
        if plan.steps == 0:
            raise ConfigError(
                f"data.drop_last=true leaves 0 steps an epoch: {plan.size} training samples are fewer than the "
                f"{plan.step_samples} of a step (data.batch_size={batch_size} x train.accumulate={accumulate}); "
                "lower data.batch_size or set data.drop_last=false"
            )
        return plan

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

    def _reader(self, split: str) -> Reader:
        """Made when first needed: a test opens no training images."""
        split = split if split in self._sources else "val"
        source = self._sources[split]
        if split not in self._holdable:
            self._holdable[split] = should_hold(source, self._settings["in_memory"], self._settings["image_size"])
        # Of files, what is held is the centre that evaluation sees, and a random crop needs the whole image.
        whole = split == "train" and not isinstance(source, ImageTensor) and crop_of_files(self._recipe) is not None
        held = self._holdable[split] and not whole
        key = split, held
        if key not in self._readers:
            self._readers[key] = (
                self._memory_reader(source, split == "train")
                if held
                else self._worker_reader(source, self._settings["num_workers"])
            )
        return self._readers[key]

    def _worker_reader(self, source: Source, count: int) -> WorkerReader:
        workers = functools.partial(self._new_workers, count=count)
        return WorkerReader(self._fetcher(source), workers, self._normalize, self._settings["max_errors"])

    def _memory_reader(self, source: Source, training: bool) -> MemoryReader:
        settings = self._settings
        if not isinstance(source, ImageTensor):
            count = settings["num_workers"] or spare_workers(len(source), self._world.size)
            reader = self._worker_reader(source, count)
            try:
                source = hold(source, reader, settings["image_size"], settings["on_error"], training)
            finally:
                reader.close()
        return MemoryReader(
            source,
            side=settings["image_size"],
            augmenter=self._augmenter(source),
            normalize=self._normalize,
            device=self._world.device,
            resident=self._resident(source.images),
        )

    def _fetcher(self, source: Source) -> Fetcher:
        settings = self._settings
        return Fetcher(
            source,
            seed=self._seed,
            side=settings["image_size"],
            num_classes=len(self.classes),
            attempts=settings["max_errors"] + 1 if settings["on_error"] == "skip" else 1,
            augmenter=self._augmenter(source),
        )

    def _augmenter(self, source: Source) -> Augmenter:
        side = self._settings["image_size"]
        crop_side = (side or source.images.shape[-1]) if isinstance(source, ImageTensor) else None
        return Augmenter(self._seed, crop_side, self._make)

    def _resident(self, images: torch.Tensor) -> bool:
        wanted: bool | str = self._settings["device_resident"]
        device = self._world.device
        if wanted != "auto" or device.type != "cuda":
            return bool(wanted)
        return images.nbytes < torch.cuda.get_device_properties(device).total_memory / 5

    def _look_at(self, source: Source) -> tuple[tuple[int, ...], bool]:
        """The shape of what the model gets, and whether it is multi-label data, from the first sample."""
        if isinstance(source, ImageTensor):
            images, targets = source.images, source.targets
        else:
            images, targets, *_ = checked(self._fetcher(source).fetch([0]))
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
