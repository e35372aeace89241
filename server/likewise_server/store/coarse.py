"""Which lists of an inverted file many queries should read: one matrix product, and a partial sort.

FAISS finds the same lists by itself, but keeps a heap for each query, which takes longer than all the rest of a batch
(benchmarks/search.py has plain FAISS beside this).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import faiss as untyped
import numpy as np

if TYPE_CHECKING:
    from likewise_server.store.types import Float32, Int64

faiss: Any = untyped  # its stubs know half of it
FEWEST = 8  # queries from which on this is quicker
SCORES = 2**22  # float32 scores held at once


class Coarse:
    """The centroids of the lists of one index, which has to outlive this."""

    def __init__(self, index: Any, centroids: Float32) -> None:
        """`centroids` `(lists, d)`."""
        self._index = index
        self._centroids = centroids
        self._l2 = index.metric_type == faiss.METRIC_L2
        self._squares = np.einsum("ij,ij->i", centroids, centroids) if self._l2 else None

    @classmethod
    def of(cls, index: Any) -> Self | None:
        """Return this for an inverted file whose lists are found by comparing all centroids; None for other indexes."""
        index = faiss.downcast_index(index)
        if not isinstance(index, faiss.IndexIVF) or not hasattr(index, "search_preassigned_c"):
            return None
        quantizer = faiss.downcast_index(index.quantizer)
        flat = isinstance(quantizer, faiss.IndexFlat) and quantizer.ntotal == index.nlist
        if not flat or index.metric_type not in {faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2}:
            return None
        if quantizer.metric_type != index.metric_type:
            return None
        return cls(index, faiss.rev_swig_ptr(quantizer.get_xb(), index.nlist * index.d).reshape(index.nlist, index.d))

    def candidates(self, queries: Float32, count: int, parameters: Any) -> Int64:
        """Return `(n, count)` positions, likeliest first, as the index does with these parameters."""
        queries = np.ascontiguousarray(queries, np.float32)
        positions = np.empty((len(queries), count), np.int64)
        step = max(FEWEST, SCORES // self._index.nlist)
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            lists, distances = self._nearest(some, min(parameters.nprobe, self._index.nlist))
            found, ignored = positions[start : start + step], np.empty((len(some), count), np.float32)
            arrays = [faiss.swig_ptr(array) for array in (lists, distances, ignored, found)]
            self._index.search_preassigned_c(
                len(some),
                faiss.swig_ptr(some),
                count,
                *arrays,
                False,
                parameters,  # takes no names
            )
        return positions

    def _nearest(self, queries: Float32, count: int) -> tuple[Int64, Float32]:
        """Return the numbers `(n, count)` of the nearest lists, nearest first, and FAISS's distances to them."""
        scores = queries @ self._centroids.T
        if self._squares is not None:
            scores *= 2
            scores -= self._squares
        lists = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
        near = np.take_along_axis(scores, lists, axis=1)
        order = np.argsort(-near, axis=1)
        lists, near = np.take_along_axis(lists, order, axis=1), np.take_along_axis(near, order, axis=1)
        if self._l2:
            near = np.einsum("ij,ij->i", queries, queries)[:, np.newaxis] - near
        return lists.astype(np.int64), np.ascontiguousarray(near, np.float32)
