"""Interleaved rounds, their medians and spread, and tables of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Section:
    """One benchmark's part of the report."""

    title: str
    what: str
    """One paragraph: what was compared, and how."""
    header: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section's body."""
        parts = [self.what]
        if self.rows:
            lines = [list(self.header), ["---"] * len(self.header), *self.rows]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        if self.notes:
            parts.append("\n".join(note if note.startswith("```") else f"- {note}" for note in self.notes))
        return "\n\n".join(parts)


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender's value of every round; one after the other within a round, in turning order."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            values[name].append(contenders[name]())
    return values


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """`median (least to greatest)`."""
    low, middle, high = (f"{value * scale:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratio(ours: Sequence[float], reference: Sequence[float], digits: int = 2) -> str:
    """The ratio of the medians, and in brackets the least and greatest ratio of one round."""
    rounds = [mine / other for mine, other in zip(ours, reference, strict=True)]
    middle = median(ours) / median(reference)
    return f"**{middle:.{digits}f}** ({min(rounds):.{digits}f} to {max(rounds):.{digits}f})"
