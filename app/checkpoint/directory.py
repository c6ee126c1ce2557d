"""The checkpoint folder of a run: durable saves, the best ones, pruning.

    epoch_3.pth  epoch_3.json                        a checkpoint and its manifest
    best_top1_epoch_3.pth  best_top1_epoch_3.json    the best by a metric: a hard link, or the only copy off schedule
    best.pth -> best_top1_epoch_3.pth                the name for people
    epoch_2.json.deleted, .epoch_3.json.417.tmp      left by a crash: undone at the next start
    epoch_1.pth.damaged                              set aside, never deleted

A manifest is committed last and removed first, so every crash leaves the previous checkpoint or the new one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.checkpoint import manifest as manifests
from app.checkpoint.manifest import Manifest
from app.checkpoint.space import check_space, save_error
from app.checkpoint.tree import tensor_bytes
from app.errors import CannotWrite, CheckpointError
from app.files import sync_folder, temporaries, write_temporary

DELETED = ".deleted"
MARGIN_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class CheckpointDir:
    """One checkpoint folder, written by one process at a time: whoever holds the run folder."""

    def __init__(self, folder: Path, metrics: Sequence[str] = (), keep: int = -1) -> None:
        """Nothing is touched before `open`.

        Args:
            folder: of the checkpoints.
            metrics: that a best checkpoint is kept by; the first one's is `best.pth`.
            keep: how many periodic checkpoints to keep; below 1: all.
        """
        self.folder, self.metrics, self.keep = folder, tuple(metrics), keep

    def open(self) -> None:
        """Make the folder, try to write into it, and undo what a crash left half done.

        Raises:
            CannotWrite: with path, user and mode.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe.{os.getpid()}.tmp"
            probe.write_bytes(b"")
            probe.unlink()
            self._clean()
        except OSError as error:
            mode = f"mode {self.folder.stat().st_mode & 0o777:o}, " if self.folder.exists() else ""
            raise CannotWrite(
                f"cannot write checkpoints to {self.folder.absolute()}: {error.strerror} ({mode}uid {os.getuid()}); "
                "choose another hooks.checkpoint.out_dir or output_root"
            ) from error

    def manifests(self) -> list[Manifest]:
        """Read all readable manifests, oldest first."""
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(CheckpointError):
                found.append(manifests.read(path))
        return sorted(found, key=lambda each: each.order)

    def save(self, state: Mapping[str, Any], entry: Manifest, best: Sequence[str] = ()) -> str:
        """Write `state`, commit it under all its names, then prune; return the file name.

        Args:
            state: see `contents.collect`.
            entry: what it is; its name gets a number where it is taken. Without `periodic`, only the best are named.
            best: the metrics that it is the best by.

        Raises:
            SaveError: nothing of it exists then, unless the error came after the commit.
        """
        stems = [f"best_{slug(metric)}_{entry.stem}" for metric in best] + [entry.stem] * entry.periodic
        names = [f"{self._free(stem)}.pth" for stem in stems]
        path = self.folder / names[-1]
        needed_bytes = tensor_bytes(state) + MARGIN_BYTES
        try:
            check_space(path, needed_bytes)
            temporary, digest = write_temporary(path, lambda file: torch.save(state, file))  # type: ignore[arg-type]
            written = replace(entry, name=path.name, size=digest.size, sha256=digest.sha256)
            entries = [
                replace(written, name=name, best=metric, periodic=False)
                for name, metric in zip(names, best, strict=False)
            ]
            self._commit(temporary, entries + [written] * entry.periodic)
        except OSError as error:
            raise save_error(path, error, needed_bytes) from error
        self._prune(written, {each.name for each in entries}, best)
        return path.name

    def _commit(self, temporary: Path, entries: Sequence[Manifest]) -> None:
        """Give the data of `temporary` its names, and each name its manifest; the last entry's comes last."""
        intents: list[Path] = []
        try:
            for entry in entries:  # on disk before the data has a name: an orphan can be told from a foreign file
                intent, _ = write_temporary(self._json(entry), entry.text().encode())
                intents.append(intent)
            primary = self.folder / entries[-1].name
            temporary.replace(primary)
            for entry in entries[:-1]:
                _link_or_copy(primary, self.folder / entry.name)
            for intent, entry in zip(intents, entries, strict=True):
                intent.replace(self._json(entry))
            for entry in entries:
                if entry.best is not None:
                    self._point(entry)
            sync_folder(self.folder)
        except BaseException:
            for entry in entries:
                if not self._json(entry).exists():
                    _discard(self.folder / entry.name)
            for path in (temporary, *intents):
                _discard(path)
            raise

    def find_best(self, metric: str, step: int) -> Manifest | None:
        """The intact checkpoint of an evaluation at `step`: the best by `metric`, or a periodic one."""
        found = [each for each in self.manifests() if each.step == each.evaluated == step]
        for each in sorted(found, key=lambda each: each.best == metric, reverse=True):
            with suppress(CheckpointError):
                manifests.verify(self.folder, each)
                return each
        return None

    def adopt_best(self, source: CheckpointDir, steps: Mapping[str, int]) -> None:
        """Link or copy the best checkpoints, by metric and step, from the folder that this run was resumed from."""
        own = {(each.best, each.step) for each in self.manifests()}
        for metric, step in steps.items():
            entry = None if (metric, step) in own else source.find_best(metric, step)
            if entry is None:
                continue
            prefix = f"best_{slug(metric)}_"
            stem = self._free(prefix + entry.stem.removeprefix(prefix))
            temporary = self.folder / f".{stem}.pth.{os.getpid()}.tmp"
            try:
                _link_or_copy(source.folder / entry.name, temporary)
                self._commit(temporary, [replace(entry, name=f"{stem}.pth", best=metric, periodic=False)])
            except OSError as error:
                logger.warning("cannot bring the best by %s from %s: %s", metric, source.folder, error.strerror)

    def best_path(self, metric: str) -> Path:
        """Path of the link to the best checkpoint by one of `metrics`."""
        return self.folder / ("best.pth" if self.metrics.index(metric) == 0 else f"best_{slug(metric)}.pth")

    def _point(self, best: Manifest) -> None:
        """Point `best.pth`, or `best_METRIC.pth` after the first metric, to this checkpoint."""
        if best.best not in self.metrics:
            return
        link = self.best_path(best.best)
        temporary = self.folder / f".{link.name}.{os.getpid()}.tmp"
        if link.is_symlink() and os.readlink(link) == best.name:
            return
        try:
            _discard(temporary)
            try:
                temporary.symlink_to(best.name)
            except OSError:
                _link_or_copy(self.folder / best.name, temporary)
            temporary.replace(link)
        except OSError as error:
            logger.warning("cannot let %s name %s: %s", link, best.name, error.strerror)
        finally:
            _discard(temporary)  # rename does nothing between two hard links of one file

    def _prune(self, newest: Manifest, best_names: set[str], best_metrics: Sequence[str]) -> None:
        present = self.manifests()
        periodic = [each for each in present if each.periodic and each.order < newest.order]
        kept = self.keep - newest.periodic
        surplus = periodic[: max(len(periodic) - kept, 0)] if self.keep > 0 else []
        surplus += [each for each in present if each.best in best_metrics and each.name not in best_names]
        for each in surplus:
            try:
                self._remove(each)
            except OSError as error:
                logger.warning("cannot delete %s: %s", self.folder / each.name, error.strerror)

    def _remove(self, entry: Manifest) -> None:
        marker = self._json(entry).with_suffix(".json" + DELETED)
        self._json(entry).replace(marker)
        (self.folder / entry.name).unlink(missing_ok=True)
        marker.unlink()

    def _clean(self) -> None:
        for path, name in temporaries(self.folder):
            if name.endswith(".json") and not (self.folder / name).exists():
                _discard(self.folder / f"{name.removesuffix('.json')}.pth")
            path.unlink()
        for marker in self.folder.glob(f"*.json{DELETED}"):
            if not (manifest := marker.with_suffix("")).exists():
                _discard(manifest.with_suffix(".pth"))
            marker.unlink()
        for entry in self.manifests():
            if entry.best is not None and (self.folder / entry.name).exists():
                self._point(entry)

    def _free(self, stem: str) -> str:
        names = [stem, *(f"{stem}_{number}" for number in range(2, 1000))]
        return next(
            name for name in names if not any((self.folder / f"{name}{end}").exists() for end in (".pth", ".json"))
        )

    def _json(self, entry: Manifest) -> Path:
        return self.folder / f"{entry.stem}.json"


def slug(metric: str) -> str:
    """Turn a metric's name into part of a file name: without its phase, safe characters only."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", metric.partition("/")[2] or metric)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
