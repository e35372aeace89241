"""Rejection: how far a vector lies from everything the head was shown, and how far is too far.

Novelty is made of two parts: 1 minus the mean cosine to the nearest supports (kNN distance; Sun et al., 2022,
arXiv:2204.06507), without centring, and 1 minus the likeness to the best class (likeness.py), centred by the
collection's mean where it is known. The distance finds what is like nothing here, the likeness what is like these
classes only as everything of its sort is; benchmarks/fewshot.py measures both. The threshold comes from two
distributions that need no further data: each support's novelty with itself left out (known things) and with its
whole class left out (unknown ones).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.evaluation import auroc
from likewise_server.heads.likeness import Likeness, fit_likeness
from likewise_server.heads.validate import stratified

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.heads.base import Matrix, Rows, Vector

# Fewer held-out supports than this show no spread.
_MIN_MEASURED = 3
# Where nothing can be measured: see "Unknown is an answer" in docs/heads.md.
_UNMEASURED, _UNMEASURED_MOST = 0.5, 0.95
# The same picture saved again must never be new.
_LEAST = 0.02
_LIKENESS_SHARE = 1 / 3
# More supports than this narrow no rate worth having, and the likeness would take time that grows with their cube.
MAX_MEASURED = 1000
_CHUNK = 1024


@dataclass(frozen=True)
class Rejection:
    """Vectors whose novelty, over the nearest `k` supports and by the likeness, exceeds `threshold` are unknown."""

    k: int
    threshold: float
    false_reject_rate: float | None
    """Share of supports rejected when left out; None where too few can be."""
    unknown_accept_rate: float | None
    """Share of supports accepted when their whole class is left out; None where that tells nothing."""
    warning: str = ""
    likeness: Likeness | None = None
    """None for heads of one class, and those of versions that went by the distance alone."""

    def novelty(self, plain: Matrix, similarities: NDArray[np.floating]) -> Vector:
        """Return the novelty (m,), about 0 alike to 1 unrelated.

        plain (m, d) are unit rows that are not centred, similarities (m, n) their cosines to the supports.
        """
        return _together(distance(similarities, self.k), self.likeness.of(plain) if self.likeness else None)

    def facts(self) -> dict[str, object]:
        """Return all but the likeness, as JSON values."""
        names = ("k", "threshold", "false_reject_rate", "unknown_accept_rate", "warning")
        return {name: getattr(self, name) for name in names}


def distance(similarities: NDArray[np.floating], k: int) -> Vector:
    """Return 1 minus the mean of the k largest.

    For each row of (m, n); returns (m,) float64: 0 alike, 1 unrelated.
    """
    k = min(k, similarities.shape[1])
    nearest = np.partition(similarities, -k, axis=1)[:, -k:].astype(np.float64)
    # Sorted, so that the sum does not depend on how the partition happened to leave them.
    nearest.sort(axis=1)
    return np.asarray(1.0 - nearest.mean(axis=1))


def _together(far: Vector, like: Vector | None) -> Vector:
    return far if like is None else (1 - _LIKENESS_SHARE) * far + _LIKENESS_SHARE * (1.0 - like)


def fit_rejection(
    supports: NDArray[np.float32], y: Rows, max_false_reject: float, seed: int, mean: Vector | None = None
) -> Rejection:
    """Choose the threshold for supports (n, d), unit rows, of classes y (n,), given the collection's mean if known.

    It is the one with the least sum of both rates among those that keep the false-reject rate at or under
    `max_false_reject`. With fewer than 1/max_false_reject supports no sample quantile can show so small a
    rate: then it is also at least the one-sided prediction bound of a normal distribution.
    """
    y = np.unique(y, return_inverse=True)[1]
    k = int(np.clip(np.median(np.bincount(y)), 1, 3))
    likeness, found = _left_out(supports, y, k, seed, mean)
    if likeness is not None and _distance_is_better(found):
        likeness, found = None, found.far()
    known, unknown = found.known, found.unknown
    if len(known) >= _MIN_MEASURED:
        least = _LEAST + _capped(found.seen, max_false_reject)
        threshold = max(least, _threshold(known, unknown, max_false_reject))
        accepted = float((unknown <= threshold).mean()) if len(unknown) else None
        note = "" if len(unknown) else "the share of unknowns accepted cannot be measured with one class"
        return Rejection(k, threshold, float((known > threshold).mean()), accepted, note, likeness)
    few = "too few classes have two examples to measure false rejections, so the threshold is a guess"
    if len(unknown):
        # Two things of one class lie nearer each other than the least alike pair of classes.
        threshold = max(_LEAST + float(found.seen.max()), min(_UNMEASURED_MOST, float(unknown.max())))
        return Rejection(k, threshold, None, None, f"{few}: the largest distance between classes", likeness)
    return Rejection(k, _UNMEASURED, None, None, f"{few}: a cosine of {1 - _UNMEASURED:g} to what it was shown")


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """Novelties of supports: seen as they are, with themselves left out, with their class left out.

    Of each there is what the distance alone would be, too.
    """

    seen: Vector
    known: Vector
    unknown: Vector
    alone: tuple[Vector, Vector, Vector]

    def far(self) -> _LeftOut:
        """Return the same by the distance alone."""
        return _LeftOut(*self.alone, self.alone)


def _left_out(
    supports: NDArray[np.float32], y: Rows, k: int, seed: int, mean: Vector | None
) -> tuple[Likeness | None, _LeftOut]:
    """Fit the likeness and measure what can be; with one class there is neither likeness nor unknown."""
    n, counts = len(y), np.bincount(y)
    rows = stratified(y, np.arange(n), MAX_MEASURED, seed)
    others = n - int(counts.max())
    seen, known, unknown = [], [], []
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        similarities = supports[part] @ supports.T
        seen.append(distance(similarities, k))
        similarities[np.arange(len(part)), part] = -np.inf
        known.append(distance(similarities, min(k, n - 1)) if n > 1 else np.empty(0))
        similarities[y[part][:, None] == y[None, :]] = -np.inf
        unknown.append(distance(similarities, min(k, others)) if others else np.empty(0))
    measured = counts[y[rows]] > 1
    far = (np.concatenate(seen), np.concatenate(known), np.concatenate(unknown))
    alone = (far[0], far[1][measured[: len(far[1])]], far[2])
    if not others:
        return None, _LeftOut(*alone, alone)
    likeness, left = fit_likeness(supports[rows], y[rows], mean)
    found = _LeftOut(
        _together(far[0], likeness.of(supports[rows].astype(np.float64))),
        _together(far[1], left.row)[measured],
        _together(far[2], left.whole_class),
        alone,
    )
    return likeness, found


def _distance_is_better(found: _LeftOut) -> bool:
    """Tell whether the distance alone parts known from unknown better, by more than a standard error.

    It does where there are many examples of few dimensions, which no linear map describes.
    """
    n = min(len(found.known), len(found.unknown))
    if n < _MIN_MEASURED:
        return False
    together, alone = (auroc(one.known, one.unknown) for one in (found, found.far()))
    return alone > together + math.sqrt(together * (1 - together) / n)


def _capped(values: Vector, cap: float) -> float:
    """Return the least value that no more than a share `cap` of the values exceeds."""
    return float(np.sort(values)[len(values) - 1 - math.floor(cap * len(values))])


def _threshold(known: Vector, unknown: Vector, cap: float) -> float:
    n, ordered = len(known), np.sort(known)
    lowest = _capped(known, cap)
    if (n + 1) * cap < 1:
        from scipy.stats import t  # noqa: PLC0415

        spread = float(known.std(ddof=1)) * math.sqrt(1 + 1 / n)
        lowest = max(lowest, float(known.mean()) + float(t.ppf(1 - cap, n - 1)) * spread)
    # Between neighbouring values any threshold does the same: the middle is as far from both as can be.
    values = np.sort(np.concatenate([known, unknown]))
    between = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate([[lowest], between[between > lowest]])
    rejected = 1 - np.searchsorted(ordered, candidates, side="right") / n
    accepted = np.searchsorted(np.sort(unknown), candidates, side="right") / max(len(unknown), 1)
    total = rejected + accepted
    # Of equally good ones the most generous: it only meets knowns that were not seen yet.
    return float(candidates[np.flatnonzero(total <= total.min() + 1e-12)[-1]]) if len(unknown) else lowest
