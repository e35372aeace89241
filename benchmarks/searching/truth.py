"""Exact neighbours by FAISS, block by block: of all rows, and of those that a filter matches."""

from __future__ import annotations

import faiss
import numpy as np

from searching.data import BLOCK, Bool, Dataset, Float32, Int64


def nearest(data: Dataset, queries: Float32, k: int, matching: Bool | None = None) -> Int64:
    """Return the numbers of the nearest rows, `(queries, k)`, best first; -1 where no more match."""
    scores = np.full((len(queries), k), -np.inf, np.float32)
    numbers = np.full((len(queries), k), -1, np.int64)
    for first, block in data.blocks(BLOCK):
        rows: Int64 | None = None
        if matching is not None:
            rows = np.flatnonzero(matching[first : first + len(block)])
            block = block[rows]  # noqa: PLW2901  # the part that matches
        if not len(block):
            continue
        found, at = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        at = np.where(at < 0, at, (at if rows is None else rows[at]) + first)
        scores = np.concatenate([scores, found], axis=1)
        numbers = np.concatenate([numbers, at], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, numbers = np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
    return numbers
