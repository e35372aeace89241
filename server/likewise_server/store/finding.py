"""The nearest rows of a snapshot: one by one where that is quick, else by the segments' approximate indexes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from likewise_server.store import exact
from likewise_server.store.parts import Part, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from likewise_server.store.approximate import Approximation, Point
    from likewise_server.store.index import Snapshot
    from likewise_server.store.types import Bool, Float32, Int64, Metric

Nearest: TypeAlias = "tuple[NDArray[np.int64], NDArray[Any]]"
FEW = 20_000  # allowed rows of a segment that are compared one by one


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which rows of each part of a snapshot may be found, all of them alive."""

    masks: tuple[Bool, ...]
    counts: tuple[int, ...]
    vids: Int64 | None = None
    """All of them, sorted, where they are known."""
    _bits: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, masks: Sequence[Bool], vids: Int64 | None = None) -> Allowed:
        """Count what the masks let through."""
        return cls(tuple(masks), tuple(int(np.count_nonzero(mask)) for mask in masks), vids)

    def bits(self, number: int) -> NDArray[np.uint8]:
        """Return one part's mask as a bitmap, worked out once."""
        if number not in self._bits:
            self._bits[number] = packed(self.masks[number])
        return self._bits[number]


@dataclass(frozen=True, slots=True)
class Found:
    """For each query vids and scores, nearest first; how they were found, and how many rows were compared."""

    nearest: list[Nearest]
    recall: float | None  # None: every row was compared
    scanned: int


def nearest(
    snapshot: Snapshot,
    queries: Float32,
    k: int,
    metric: Metric,
    allowed: Allowed | None = None,
    *,
    compare_all: bool = False,
) -> Found:
    """Find the `k` nearest rows of each query `(n, d)`, searchable; of those allowed, if given.

    As many as there are, up to `k`: where an approximate index gives fewer, all its rows are compared, as they are with
    `compare_all`.
    """
    one_by_one: list[tuple[Part, Bool]] = []
    pieces: list[list[Nearest]] = []
    recalls: list[float] = []
    scanned = 0
    for number, part in enumerate(snapshot.parts):
        count = allowed.counts[number] if allowed else len(part) - part.dead
        # Rows in memory are in lists because there are many of them and others, whatever is left of them.
        few = FEW if allowed is not None or part.lists is None else 0
        point = _point(part, k) if count > few and not compare_all else None
        bits = None if point is None else allowed.bits(number) if allowed else part.alive_bits()
        found = _approximately(part, queries, k, metric, point, bits, count) if point else None
        if found is not None and point is not None:
            pieces.append(found)
            recalls.append(point.recall)
            scanned += min(k * point.factor, count)
        elif count or part is snapshot.delta:
            one_by_one.append((part, allowed.masks[number] if allowed else part.alive))
            scanned += count
    if any(mask.any() for _, mask in one_by_one) or not pieces:
        pieces.append(list(exact.nearest(one_by_one, queries, k, metric)))
    best = pieces[0] if len(pieces) == 1 else [_best(each, k) for each in zip(*pieces, strict=True)]
    return Found(best, min(recalls, default=None), scanned)


def _point(part: Part, k: int) -> Point | None:
    return part.approximation.point(k) if part.approximation else None


def _approximately(
    part: Part,
    queries: Float32,
    k: int,
    metric: Metric,
    point: Point,
    bits: NDArray[np.uint8] | None,
    count: int,
) -> list[Nearest] | None:
    """Return what an approximate index finds; None if that is fewer rows than there are."""
    if part.approximation is None:
        return None
    if bits is not None:
        point = _deeper(part.approximation, point, k, len(part) / count)
    positions, scores = part.approximation.search(part, queries, k, point, metric, bits)
    if len(queries) and int((positions >= 0).sum(axis=1).min()) < min(k, count):
        return None
    if metric == "l2":
        scores = -np.sqrt(np.maximum(-scores, 0))
    vids = part.vids[positions]
    if count >= k:
        return list(zip(vids, scores, strict=True))
    return [(vid[at >= 0], score[at >= 0]) for vid, score, at in zip(vids, scores, positions, strict=True)]


def _deeper(approximation: Approximation, point: Point, k: int, thinned: float) -> Point:
    """Return how to find `k` of the rows that may be found: they are about the nearest k x `thinned` of all."""
    deep = approximation.point(math.ceil(k * thinned)) or approximation.points[-1]
    effort = max(point.effort, math.ceil(deep.effort * max(1.0, k * thinned / deep.k)))
    return point.model_copy(update={"effort": effort})


def _best(pieces: Sequence[Nearest], k: int) -> Nearest:
    vids = np.concatenate([vids for vids, _ in pieces])
    scores = np.concatenate([scores for _, scores in pieces])
    order = np.lexsort((vids, -scores))[:k]
    return vids[order], scores[order]
