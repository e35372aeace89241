"""Candidates in order, best first, and whether the first is more than luck ahead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine.timings import Timings
from likewise_server.errors import LikewiseError
from likewise_server.heads.transferability import Transferability
from likewise_server.heads.validate import paired_interval, wilson


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers, and its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: NDArray[np.bool_]) -> Share:
        """Return the share of `right`, (n,)."""
        hits = int(right.sum())
        return cls(hits / len(right), *wilson(hits, len(right)))


@dataclass(slots=True)
class Candidate:
    """A backbone, or the vectors of a collection, and how they did; `error` where they could not be measured."""

    ref: BackboneRef | None
    space: Space | None = None
    collection: str = ""
    found: Transferability | None = None
    seconds: float = 0.0  # wall clock of embedding `images` images
    images: int = 0
    error: LikewiseError | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.collection or str(self.ref)

    @property
    def ms_per_image(self) -> float | None:
        """Wall-clock milliseconds for each image, decoding and queueing included; None where nothing was embedded."""
        return 1e3 * self.seconds / self.images if self.images else None


@dataclass(slots=True)
class Ranking:
    """Candidates, best first, those that failed last. `errors` are those of images, by their position."""

    ranked: list[Candidate]
    items: int  # that all of them were measured on
    classes: int
    chance: float
    reason: str
    errors: dict[int, LikewiseError] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class _Measured:
    candidate: Candidate
    found: Transferability

    @property
    def score(self) -> float:
        return float(self.found.right.mean())

    @property
    def ms(self) -> float:
        return self.candidate.ms_per_image or 0.0

    def ahead(self, other: _Measured) -> tuple[float, float, float]:
        """Return by how much this is better on the same items, and the 95 % interval of that."""
        differences = self.found.right - other.found.right
        return float(differences.mean()), *paired_interval(differences)


def placed(candidates: Sequence[Candidate], labels: Sequence[str]) -> Ranking:
    """Return the ranking of candidates measured on items with these `labels`, by the mean of their two accuracies.

    Raises the first one's error where none could be measured.
    """
    measured = [_Measured(candidate, candidate.found) for candidate in candidates if candidate.found is not None]
    failed = [candidate for candidate in candidates if candidate.found is None]
    if not measured:
        raise next(candidate.error for candidate in failed if candidate.error is not None)
    measured.sort(key=lambda one: -one.score)
    counts = Counter(labels[row] for row in measured[0].found.rows)
    items = counts.total()
    return Ranking(
        [*(one.candidate for one in measured), *failed],
        items,
        len(counts),
        max(counts.values()) / items,
        _reason(measured, items),
    )


def _reason(measured: Sequence[_Measured], items: int) -> str:
    first = measured[0]
    told = f"{first.candidate.name} is right on {_percent(first.score)} of {items} items left out, by kNN and ridge"
    if len(measured) == 1:
        return f"{told}; nothing else was measured"
    second = measured[1]
    ahead, low, high = first.ahead(second)
    told += f"; {second.candidate.name} on {_percent(second.score)}: {_points(ahead, low, high)}"
    if low > 0:
        return told
    equal = [first, *(other for other in measured[1:] if first.ahead(other)[1] <= 0)]
    quickest = min(equal, key=lambda one: one.ms)
    told += ", which is within the noise"
    if quickest is not first and quickest.ms:
        told += f"; of those that near, {quickest.candidate.name} is the quickest: "
        told += f"{quickest.ms:.1f} ms an image against {first.ms:.1f}"
    return told


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(ahead: float, low: float, high: float) -> str:
    return f"{100 * ahead:.1f} points apart, {100 * low:.1f} to {100 * high:.1f} with 95 % confidence"
