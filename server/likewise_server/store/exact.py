"""Exact nearest rows: float32 proposes, float64 decides, so every path gives the same answer.

A matrix product computes one vector's score a little differently in a batch, alone, or from another block of
rows. The best few are therefore scored again in float64, ties going to the older row. Where the last candidate
was so close that a row left out could belong in the answer (many copies of one image, say), all are scanned.

The product is NumPy's, in blocks over rows that may be mapped from a file: it takes any mask, without a selector. Of
many rows that have them, bytes are asked first which rows need no product at all (codes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import codes
from likewise_server.store.parts import BLOCK, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from likewise_server.store.types import Bool, Float32, Int64, Metric

    Proposal = tuple[Int64, float]
    """Positions, and a float32 score that no allowed row left out exceeds."""

GATHER_SHARE = 0.25  # below it, the allowed rows are copied out first
SCORES = 2**24  # float32 scores held at once
_EPS = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


def nearest(
    parts: Sequence[tuple[Part, Bool]], queries: Float32, k: int, metric: Metric
) -> list[tuple[Int64, NDArray[np.float64]]]:
    """Return for each query, `(n, d)` searchable, the vids and scores of its `k` nearest allowed rows.

    Scores are float64, larger is nearer: the inner product, or minus the Euclidean distance for l2.
    """
    if not len(queries):
        return []
    proposals = [_proposals(part, allowed, queries, k, metric) for part, allowed in parts]
    return [_decide(parts, [each[i] for each in proposals], query, k, metric) for i, query in enumerate(queries)]


def _proposals(part: Part, allowed: Bool, queries: Float32, k: int, metric: Metric) -> list[Proposal]:
    """Return what `_propose` does, for each query."""
    want = 2 * k + 32
    found: list[Proposal | None] = [None] * len(queries)
    if part.codes is not None and metric != "l2" and int(np.count_nonzero(allowed)) >= max(codes.LEAST, want):
        step = max(1, SCORES // len(allowed))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            open_ = codes.candidates(part.codes, part.block(0, len(part)), allowed, some, k)
            found[start : start + step] = [
                None if at is None else _narrowed(part, at, query, want) for at, query in zip(open_, some, strict=True)
            ]
    left = [i for i, each in enumerate(found) if each is None]
    if left:
        at, last = _propose(part, allowed, queries if len(left) == len(queries) else queries[left], want, metric)
        for row, i in enumerate(left):
            found[i] = at[row], float(last[row])
    return [each for each in found if each is not None]


def _narrowed(part: Part, at: Int64, query: Float32, want: int) -> Proposal:
    """Return the best `want` of the rows at `at`, which no other row can be better than."""
    if len(at) <= want:
        return at, -np.inf
    scores = part.taken(at) @ query
    top = np.argpartition(scores, len(at) - want)[-want:]
    return at[top], float(scores[top].min())


def _propose(
    part: Part, allowed: Bool, queries: Float32, want: int, metric: Metric
) -> tuple[Int64, NDArray[np.float64]]:
    """Return positions `(n, c)`, and `(n,)` float32 scores that no allowed row left out exceeds."""
    count = int(np.count_nonzero(allowed))
    if count <= want:
        everything = np.broadcast_to(np.flatnonzero(allowed), (len(queries), count))
        return everything, np.full(len(queries), -np.inf)
    gathered = np.flatnonzero(allowed) if count < GATHER_SHARE * len(allowed) else None
    step = max(2 * want, min(BLOCK, SCORES // len(queries)))
    best = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(allowed) if gathered is None else count, step):
        at = np.arange(start, min(start + step, len(allowed))) if gathered is None else gathered[start : start + step]
        scores = scores_of(part, slice(start, start + step) if gathered is None else at, queries, metric)
        if gathered is None and count < len(allowed):
            scores[:, ~allowed[start : start + step]] = -np.inf
        best, found = merged(best, found, scores, np.broadcast_to(at, scores.shape), want)
    return found, best.min(axis=1).astype(np.float64)


def scores_of(part: Part, at: slice | Int64, queries: Float32, metric: Metric) -> Float32:
    """Return float32 scores `(n, rows)`; for l2 minus the squared distance."""
    scores: Float32 = queries @ part.taken(at).T
    if metric == "l2":
        scores *= 2
        scores -= part.squares[at]
        scores -= np.einsum("ij,ij->i", queries, queries)[:, np.newaxis]
    return scores


def merged(best: Float32, found: Int64, scores: Float32, at: Int64, want: int) -> tuple[Float32, Int64]:
    """Return the best `want` scores of each query, and where they are from, in any order."""
    if scores.shape[1] > want:
        top = np.argpartition(scores, scores.shape[1] - want, axis=1)[:, -want:]
        scores, at = np.take_along_axis(scores, top, axis=1), np.take_along_axis(at, top, axis=1)
    best, found = np.concatenate([best, scores], axis=1), np.concatenate([found, at], axis=1)
    if best.shape[1] > want:
        top = np.argpartition(best, best.shape[1] - want, axis=1)[:, -want:]
        best, found = np.take_along_axis(best, top, axis=1), np.take_along_axis(found, top, axis=1)
    return best, found


def _decide(
    parts: Sequence[tuple[Part, Bool]],
    proposals: Sequence[Proposal],
    query: Float32,
    k: int,
    metric: Metric,
) -> tuple[Int64, NDArray[np.float64]]:
    exact_query = query.astype(np.float64)
    length = float(np.sqrt(exact_query @ exact_query))
    # How far a float32 sum of d products may be off, relative to their size; and where they underflow.
    relative = _EPS * (8 + 4 * np.sqrt(len(query)))
    absolute = 8 * _TINY * len(query)
    chosen = [at for at, _ in proposals]
    vids, scores = _score(parts, chosen, exact_query, k, metric)
    if len(scores) == k:
        floor = float(scores[-1])
        widened = False
        for i, ((part, allowed), (_, last)) in enumerate(zip(parts, proposals, strict=True)):
            if last == -np.inf:
                continue
            if metric == "l2":
                slack = relative * (4 * length**2 - 2 * min(last, 0.0)) + absolute
                margin = -relative * floor + absolute
            else:
                slack = margin = relative * length * float(np.sqrt(part.squares.max())) + absolute
            if last + slack >= floor:
                chosen[i] = _scan(part, allowed, query, floor - margin, metric)
                widened = True
        if widened:
            vids, scores = _score(parts, chosen, exact_query, k, metric)
    return vids, -np.sqrt(-scores) if metric == "l2" else scores


def _score(
    parts: Sequence[tuple[Part, Bool]],
    chosen: Sequence[Int64],
    query: NDArray[np.float64],
    k: int,
    metric: Metric,
) -> tuple[Int64, NDArray[np.float64]]:
    """Return the vids and scores of the best `k` rows among those chosen; l2 as minus the square."""
    vids = np.concatenate([part.vids[at] for (part, _), at in zip(parts, chosen, strict=True)])
    scores = np.concatenate(
        [exact_scores(part.taken(at), query, metric) for (part, _), at in zip(parts, chosen, strict=True)]
    )
    order = np.lexsort((vids, -scores))[:k]
    return vids[order], scores[order]


def exact_scores(rows: Float32, query: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Return the float64 scores `(n,)` of rows `(n, d)`, the same for equal rows wherever they stand."""
    scores = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        wide = rows[start : start + BLOCK].astype(np.float64)
        if metric == "l2":
            wide -= query
            scores[start : start + BLOCK] = -(wide * wide).sum(axis=1)
        else:
            scores[start : start + BLOCK] = (wide * query).sum(axis=1)
    return scores


def _scan(part: Part, allowed: Bool, query: Float32, threshold: float, metric: Metric) -> Int64:
    """Return the positions of all allowed rows whose float32 score reaches the threshold."""
    found = []
    for start in range(0, len(allowed), BLOCK):
        rows = part.block(start, start + BLOCK)
        if metric == "l2":
            difference = rows - query
            scores = -np.einsum("ij,ij->i", difference, difference)
        else:
            scores = rows @ query
        found.append(start + np.flatnonzero((scores >= threshold) & allowed[start : start + BLOCK]))
    return np.concatenate(found)
