"""Exact nearest rows: float32 proposes, float64 decides, so every path gives the same answer.

A matrix product computes one vector's score a little differently in a batch, alone, or from another block of
rows. The best few are therefore scored again in float64, ties going to the older row. Where the last candidate
was so close that a row left out could belong in the answer (many copies of one image, say), all are scanned.

The product is NumPy's, over the rows of a flat FAISS index: it takes any mask, without a selector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from likewise_server.store.types import Bool, Float32, Int64, Metric

GATHER_SHARE = 0.25  # below it, the allowed rows are copied out first
SCORES = 2**24  # float32 scores held at once
BLOCK = 16_384
_EPS = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that never change: `vids` `(n,)` ascending, `rows` `(n, d)` searchable, `alive` `(n,)`.

    `squares` `(n,)` are the squared lengths of the rows. `owner` keeps the memory that `rows` may be a view of.
    """

    vids: Int64
    rows: Float32
    alive: Bool
    squares: Float32
    owner: Any = None

    def mask_of(self, vids: Int64) -> Bool:
        """Return `(n,)`, true at the rows with these vids; vids of other parts are passed over."""
        mask = np.zeros(len(self.vids), np.bool_)
        if len(self.vids):
            at = np.minimum(np.searchsorted(self.vids, vids), len(self.vids) - 1)
            mask[at[self.vids[at] == vids]] = True
        return mask


def nearest(
    parts: Sequence[tuple[Part, Bool]], queries: Float32, k: int, metric: Metric
) -> list[tuple[Int64, NDArray[np.float64]]]:
    """Return for each query, `(n, d)` searchable, the vids and scores of its `k` nearest allowed rows.

    Scores are float64, larger is nearer: the inner product, or minus the Euclidean distance for l2.
    """
    if not len(queries):
        return []
    proposals = [_propose(part, allowed, queries, 2 * k + 32, metric) for part, allowed in parts]
    return [
        _decide(parts, [(at[i], last[i]) for at, last in proposals], query, k, metric)
        for i, query in enumerate(queries)
    ]


def _propose(
    part: Part, allowed: Bool, queries: Float32, want: int, metric: Metric
) -> tuple[Int64, NDArray[np.float64]]:
    """Return positions `(n, c)`, and `(n,)` float32 scores that no allowed row left out exceeds."""
    count = int(np.count_nonzero(allowed))
    if count <= want:
        everything = np.broadcast_to(np.flatnonzero(allowed), (len(queries), count))
        return everything, np.full(len(queries), -np.inf)
    positions = np.flatnonzero(allowed) if count < GATHER_SHARE * len(allowed) else None
    rows = part.rows if positions is None else part.rows[positions]
    squares = part.squares if positions is None else part.squares[positions]
    found = np.empty((len(queries), want), np.int64)
    last = np.empty(len(queries))
    step = max(1, SCORES // len(rows))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ rows.T
        if metric == "l2":
            own = np.einsum("ij,ij->i", queries[start : start + step], queries[start : start + step])
            scores *= 2
            scores -= squares
            scores -= own[:, np.newaxis]
        if positions is None and count < len(allowed):
            scores[:, ~allowed] = -np.inf
        best = np.argpartition(scores, len(rows) - want, axis=1)[:, -want:]
        last[start : start + step] = np.take_along_axis(scores, best[:, :1], axis=1)[:, 0]
        found[start : start + step] = best if positions is None else positions[best]
    return found, last


def _decide(
    parts: Sequence[tuple[Part, Bool]],
    proposals: Sequence[tuple[Int64, float]],
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
        [exact_scores(part.rows[at], query, metric) for (part, _), at in zip(parts, chosen, strict=True)]
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
        rows = part.rows[start : start + BLOCK]
        if metric == "l2":
            difference = rows - query
            scores = -np.einsum("ij,ij->i", difference, difference)
        else:
            scores = rows @ query
        found.append(start + np.flatnonzero((scores >= threshold) & allowed[start : start + BLOCK]))
    return np.concatenate(found)
