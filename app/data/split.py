"""Which samples are held out for validation."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from hashlib import blake2b

import torch

from app.core import rng


def split_by_name(names: list[str], targets: list[int], val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices (ascending) of the training and of the validation part.

    A sample is held out if the hash of its name, as a number in [0, 1), is below `val_fraction`: it keeps its side when
    others come and go, and a class's share is approximate. A class of two or more has one at least on either side.
    """
    draws, members = [], defaultdict[int, list[int]](list)
    for index, (name, target) in enumerate(zip(names, targets, strict=True)):
        # One name has two spellings in Unicode, and systems differ in which they give back.
        spelled = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
        draws.append(int.from_bytes(blake2b(spelled, digest_size=8).digest(), "big") / 2**64)
        members[target].append(index)
    held_out = set()
    for own in members.values():
        own.sort(key=lambda index: draws[index])
        below = sum(draws[index] < val_fraction for index in own)
        held_out.update(own[: min(max(below, 1), len(own) - 1)])
    return [i for i in range(len(names)) if i not in held_out], sorted(held_out)


def stratified_split(targets: torch.Tensor, val_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (ascending) of the training and the validation part: the same share of each class, always the same ones.

    A class of two samples or more has at least one in either part.
    """
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    for label in sorted(set(targets.tolist())):
        members = (targets == label).nonzero()[:, 0]
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        chosen = torch.randperm(len(members), generator=rng.generator("validation split", label))[:count]
        held_out[members[chosen]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
