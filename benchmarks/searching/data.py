"""The rows, the queries and the true neighbours on disk. Needs NumPy and nothing else: peers import it too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from searching.plan import Plan

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
BLOCK = 20_000  # rows in memory at once
BUCKETS = 1_000_000  # `bucket < x` matches the part x / BUCKETS of the rows
CLASSES = 100


class Dataset:
    """What one plan's folder holds. Blocks are read, not mapped: mapped pages would count as the reader's memory."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = plan.folder / "rows.npy"
        mapped = np.load(self.path, mmap_mode="r")
        (self.n, self.dim), self._offset = mapped.shape, mapped.offset

    def rows(self, first: int, last: int) -> Float32:
        """Return rows, `(last - first, dim)`."""
        start = self._offset + first * self.dim * 4
        count = (min(last, self.n) - first) * self.dim
        return np.fromfile(self.path, np.float32, count, offset=start).reshape(-1, self.dim)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, Float32]]:
        """Yield the number of the first row of each block, and the block."""
        for first in range(0, self.n, size):
            yield first, self.rows(first, first + size)

    def sample(self, count: int) -> Float32:
        """Return rows drawn at random, for training."""
        picked = np.sort(np.random.default_rng(self.plan.seed).permutation(self.n)[:count])
        sample = np.empty((count, self.dim), np.float32)
        for first, block in self.blocks():
            start, end = np.searchsorted(picked, (first, first + len(block)))
            sample[start:end] = block[picked[start:end] - first]
        return sample

    @cached_property
    def queries(self) -> Float32:
        """All held-out queries."""
        return np.asarray(np.load(self.plan.folder / "queries.npy"))

    @cached_property
    def truth(self) -> Int64:
        """The numbers of each query's nearest rows, best first."""
        return np.asarray(np.load(self.plan.folder / "truth.npy"))

    @property
    def half(self) -> int:
        """Queries before this one tune; it and those behind are timed."""
        return len(self.queries) // 2

    @cached_property
    def bucket(self) -> Int64:
        """Each row's attribute, drawn evenly from 0 to BUCKETS, so that a filter can match any part of the rows."""
        return np.asarray(np.random.default_rng(self.plan.seed + 1).integers(0, BUCKETS, self.n))

    @cached_property
    def label(self) -> Int64:
        """Each row's class: clusters in CLASSES groups, so that a class's rows lie together in some places."""
        clusters = np.load(self.plan.folder / "clusters.npy")
        return np.asarray(clusters % CLASSES, np.int64)


def recall(found: Int64, truth: Int64) -> float:
    """Return the share of the true neighbours that was found; -1 stands for nothing."""
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, truth, strict=True))
    return hits / max(int((truth >= 0).sum()), 1)


def unit(rows: Float32) -> Float32:
    """Scale rows to length 1 in place, and return them."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def new_array(path: Path, n: int, dim: int) -> Float32:
    """Return a float32 array on disk, to be written block by block."""
    return np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
