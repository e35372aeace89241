"""Rejection: how far a vector lies from everything the head was shown, and how far is too far.

Novelty is 1 minus the mean cosine to the nearest supports (kNN distance; Sun et al., 2022,
arXiv:2204.06507). The threshold comes from two distributions that need no further data: each support's
novelty with itself left out (known things) and with its whole class left out (unknown ones).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.validate import MAX_HELD_OUT, stratified

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.heads.base import Rows, Vector

# Fewer held-out supports than this show no spread.
_MIN_MEASURED = 3
# Where nothing can be measured: see "Unknown is an answer" in docs/heads.md.
_UNMEASURED, _UNMEASURED_MOST = 0.5, 0.95
# The same picture saved again must never be new.
_LEAST = 0.02
_CHUNK = 1024


@dataclass(frozen=True)
class Rejection:
    """Vectors whose novelty over the nearest `k` supports exceeds `threshold` are unknown."""

    k: int
    threshold: float
    false_reject_rate: float | None
    """Share of supports rejected when left out; None where too few can be."""
    unknown_accept_rate: float | None
    """Share of supports accepted when their whole class is left out; None where that tells nothing."""
    warning: str = ""


def novelty(similarities: NDArray[np.floating], k: int) -> Vector:
    """Return 1 minus the mean of the k largest.

    For each row of (m, n); returns (m,) float64: 0 alike, 1 unrelated.
    """
    k = min(k, similarities.shape[1])
    nearest = np.partition(similarities, -k, axis=1)[:, -k:].astype(np.float64)
    # Sorted, so that the sum does not depend on how the partition happened to leave them.
    nearest.sort(axis=1)
    return np.asarray(1.0 - nearest.mean(axis=1))


def fit_rejection(supports: NDArray[np.float32], y: Rows, max_false_reject: float, seed: int) -> Rejection:
    """Choose the threshold for supports (n, d), unit rows, of classes y (n,).

    It is the one with the least sum of both rates among those that keep the false-reject rate at or under
    `max_false_reject`. With fewer than 1/max_false_reject supports no sample quantile can show so small a
    rate: then it is also at least the one-sided prediction bound of a normal distribution.
    """
    counts = np.bincount(y)
    k = int(np.clip(np.median(counts[counts > 0]), 1, 3))
    known, unknown = _held_out(supports, y, k, seed)
    if len(known) >= _MIN_MEASURED:
        threshold = max(_LEAST, _threshold(known, unknown, max_false_reject))
        accepted = float((unknown <= threshold).mean()) if len(unknown) else None
        note = "" if len(unknown) else "the share of unknowns accepted cannot be measured with one class"
        return Rejection(k, threshold, float((known > threshold).mean()), accepted, note)
    few = "too few classes have two examples to measure false rejections, so the threshold is a guess"
    if len(unknown):
        # Two things of one class lie nearer each other than the least alike pair of classes.
        threshold = min(_UNMEASURED_MOST, float(unknown.max()))
        return Rejection(k, max(_LEAST, threshold), None, None, f"{few}: the largest distance between classes")
    return Rejection(k, _UNMEASURED, None, None, f"{few}: a cosine of {1 - _UNMEASURED:g} to what it was shown")


def _held_out(supports: NDArray[np.float32], y: Rows, k: int, seed: int) -> tuple[Vector, Vector]:
    """Return the novelties with the row itself left out and with its class left out (none with one class)."""
    n, counts = len(y), np.bincount(y)
    rows = stratified(y, np.arange(n), MAX_HELD_OUT, seed)
    others = n - int(counts.max())
    known, unknown = [], []
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        similarities = supports[part] @ supports.T
        similarities[np.arange(len(part)), part] = -np.inf
        if n > 1:
            known.append(novelty(similarities, min(k, n - 1))[counts[y[part]] > 1])
        if others:
            similarities[y[part][:, None] == y[None, :]] = -np.inf
            unknown.append(novelty(similarities, min(k, others)))
    empty = np.empty(0)
    return np.concatenate([empty, *known]), np.concatenate([empty, *unknown])


def _threshold(known: Vector, unknown: Vector, cap: float) -> float:
    n, ordered = len(known), np.sort(known)
    lowest = float(ordered[n - 1 - math.floor(cap * n)])
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
