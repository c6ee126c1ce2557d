"""Find the checkpoint to resume from: the newest intact one. Damaged ones are named and set aside."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from app.checkpoint import manifest as manifests
from app.checkpoint.directory import DELETED, CheckpointDir
from app.checkpoint.manifest import Manifest
from app.errors import CheckpointError
from app.files import temporaries

DAMAGED = ".damaged"

logger = logging.getLogger(__name__)


def newest_intact(folder: Path) -> Manifest | None:
    """Return the newest checkpoint by step whose file is what was written; None when there is nothing at all.

    Damaged ones are named in one warning and set aside as `*.damaged`.

    Raises:
        CheckpointError: there are checkpoints, but none that can be resumed from.
        UnreadableError: the system does not let one be read that may be the newest.
    """
    candidates: list[Manifest] = []
    damaged: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            candidates.append(manifests.read(path))
        except manifests.NotDamagedError:
            raise
        except CheckpointError as error:
            damaged[path.stem] = str(error)
    weights = [each for each in candidates if each.kind != "full"]
    found = None
    for each in sorted(candidates, key=lambda each: each.order, reverse=True):
        if each.kind != "full":
            continue
        try:
            manifests.verify(folder, each)
        except manifests.NotDamagedError:
            raise
        except CheckpointError as error:
            damaged[each.stem] = str(error)
            continue
        found = each
        break
    if found is not None:
        if damaged:
            logger.warning("%s; set aside, going on from %s", "; ".join(damaged.values()), folder / found.name)
            for stem in damaged:
                _set_aside(folder, stem)
        return found
    _refuse_silent_start(folder, list(damaged.values()), weights)
    return None


def manifest_of(path: Path) -> Manifest | None:
    """Read the manifest of a checkpoint file, also of `best.pth`; None when it has none.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    real = path.resolve()
    own = real.with_suffix(".json")
    if own.exists():
        found = manifests.read(own)
        return found if found.name == real.name else None
    if real.name.startswith("best"):  # a hard link, or a copy, where there are no symbolic links
        size = real.stat().st_size
        for each in CheckpointDir(real.parent).manifests():
            if each.size == size and each.best is not None and manifests.hash_file(real) == each.sha256:
                return replace(each, name=real.name)
    return None


def verify(path: Path) -> None:
    """Raise CheckpointError when the checkpoint file `path` has a manifest, and is not what was written."""
    if (found := manifest_of(path)) is not None:
        manifests.verify(path.resolve().parent, found)


def weights_only(source: object) -> CheckpointError:
    """What to raise where a checkpoint without the optimizer is to be resumed from."""
    return CheckpointError(
        f"{source} holds weights only (hooks.checkpoint.save_optimizer=false) and cannot be resumed from; "
        f"start from its weights with resume=false load_from={source}"
    )


def _refuse_silent_start(folder: Path, damaged: list[str], weights: list[Manifest]) -> None:
    """Raise CheckpointError when there is something that looks like a checkpoint: never from zero in silence."""
    if weights and not damaged:
        raise weights_only(folder / max(weights, key=lambda each: each.order).name)
    pending = {name.removesuffix(".json") for _, name in temporaries(folder)}
    pending |= {path.name.removesuffix(f".json{DELETED}") for path in folder.glob(f"*.json{DELETED}")}
    orphans = [path for path in folder.glob("*.pth") if not path.is_symlink() and path.stem not in pending]
    problems = damaged + [f"{path} has no manifest" for path in orphans if f"{path.stem}.json" not in damaged]
    problems += [f"{path} was set aside as damaged" for path in sorted(folder.glob(f"*.pth{DAMAGED}"))]
    if problems:
        raise CheckpointError(
            f"no intact checkpoint in {folder}: " + "; ".join(problems) + ". Start over with resume=false, "
            "or name a checkpoint file with resume=PATH"
        )


def _set_aside(folder: Path, stem: str) -> None:
    for suffix in (".json", ".pth"):
        path = folder / f"{stem}{suffix}"
        with suppress(FileNotFoundError):
            try:
                path.replace(path.with_name(path.name + DAMAGED))
            except PermissionError:
                logger.warning("cannot rename %s: no permission", path)
