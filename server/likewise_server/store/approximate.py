"""Near rows without looking at all of them: a FAISS index proposes positions, the rows themselves decide.

FAISS is given search parameters with each call, never settings on the index, which threads share. It works
with as many threads as a call's queries are worth.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import faiss as untyped
import numpy as np
from pydantic import BaseModel

from likewise_server.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from likewise_server.store.gpu import OnGpu
    from likewise_server.store.parts import Part
    from likewise_server.store.types import Float32, Int64, Metric

faiss: Any = untyped  # its stubs know half of it
QUERIES_PER_THREAD = 4
LEAST_QUEUE, MOST_QUEUE = 16, 4096  # of HNSW
# Each a quarter more than the one before at most, where that is a whole number.
_EFFORTS = sorted({quarters * 2**n // 4 for n in range(18) for quarters in (4, 5, 6, 7) if quarters * 2**n % 4 == 0})
MANY = 16  # times k: up to so many candidates are sorted as they are


class Point(BaseModel):
    """How to find up to `k` rows: with which effort, and `factor` times k candidates compared in full.

    The effort is lists probed, or the size of HNSW's queue. `recall` was measured so.
    """

    k: int
    effort: int
    factor: int
    recall: float


class Approximation:
    """A FAISS index over the positions of a segment's rows."""

    def __init__(self, index: Any, points: Sequence[Point], on_gpu: OnGpu | None = None) -> None:
        """`points` in order of their k; `on_gpu` proposes instead of `index` where it can."""
        self.index = index
        self.points = points
        self._on_gpu = on_gpu

    @property
    def lends(self) -> bool:
        """Return whether all that was trained is lists, which do for other rows too."""
        return isinstance(faiss.downcast_index(self.index), faiss.IndexIVFRaBitQ)

    def point(self, k: int) -> Point | None:
        """Return how to find `k` rows; None for more than was ever measured."""
        return next((point for point in self.points if point.k >= k), None)

    def efforts(self) -> list[int]:
        """Return efforts worth trying, least first."""
        kind = _innermost(self.index)
        if isinstance(kind, faiss.IndexIVF):
            return [*(effort for effort in _EFFORTS if effort < kind.nlist), int(kind.nlist)]
        if isinstance(kind, faiss.IndexHNSW):
            return [effort for effort in _EFFORTS if LEAST_QUEUE <= effort <= MOST_QUEUE]
        return [0]

    def candidates(self, queries: Float32, count: int, effort: int, bits: NDArray[np.uint8] | None = None) -> Int64:
        """Return `(n, count)` positions, likeliest first, -1 where there are no more; only of set `bits`, if given."""
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        use_threads(len(queries))
        _, positions = self.index.search(queries, count, params=_parameters(self.index, effort, selector))
        return np.asarray(positions, np.int64)

    def search(
        self, part: Part, queries: Float32, k: int, point: Point, metric: Metric, bits: NDArray[np.uint8] | None
    ) -> tuple[Int64, Float32]:
        """Return `(n, k)` positions in `part`, nearest first, -1 where there are no more, and their scores."""
        count = min(max(k * point.factor, k), len(part))
        positions = self._on_gpu.candidates(part, queries, count, point.effort, bits) if self._on_gpu else None
        if positions is None:
            positions = self.candidates(queries, count, point.effort, bits)
        scores = compared(part, queries, positions, metric)
        rows = np.arange(len(queries))[:, np.newaxis]
        if count > MANY * k:
            best = np.argpartition(scores, count - k, axis=1)[:, -k:]
            positions, scores = positions[rows, best], scores[rows, best]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return positions[rows, order], scores[rows, order]


def compared(part: Part, queries: Float32, positions: Int64, metric: Metric) -> Float32:
    """Return the scores `(n, c)` of rows at `positions` `(n, c)`, for l2 minus the square; -inf at -1."""
    scores = np.empty(positions.shape, np.float32)
    if part.rows.dtype == np.float32:
        compare = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx
        positions, queries = np.ascontiguousarray(positions), np.ascontiguousarray(queries)
        pointers = [faiss.swig_ptr(array) for array in (scores, queries, part.rows, positions)]
        compare(*pointers, queries.shape[1], *positions.shape)
    else:
        for query, at, into in zip(queries, positions, scores, strict=True):
            rows = part.taken(at)
            into[:] = ((rows - query) ** 2).sum(axis=1) if metric == "l2" else rows @ query
    if metric == "l2":
        np.negative(scores, out=scores)
    scores[positions < 0] = -np.inf
    return scores


def use_threads(queries: int) -> None:
    """Let FAISS use as many threads, in the thread of the caller, as so many queries are worth."""
    faiss.omp_set_num_threads(max(1, min(_cores(), queries // QUERIES_PER_THREAD)))


@functools.cache
def _cores() -> int:
    return os.cpu_count() or 1


def check_factory(spec: str, dim: int, metric: Metric) -> None:
    """Raise InvalidArgument for a factory that FAISS cannot build, or that cannot be searched as we do."""
    try:
        index = faiss.index_factory(dim, spec, faiss_metric(metric))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1][:200]
        raise InvalidArgument(f"FAISS cannot make the index {spec!r} for {dim} dimensions: {reason}") from error
    outer = faiss.downcast_index(index)
    refused = (faiss.IndexRefine, faiss.IndexIDMap, faiss.IndexIDMap2)
    if isinstance(outer, refused):
        raise InvalidArgument(
            f"Leave RFlat, Refine and IDMap out of {spec!r}: candidates are compared with the stored vectors anyway."
        )


def make(spec: str, dim: int, metric: Metric) -> Any:
    """Return an empty index; raises RuntimeError where FAISS cannot make it."""
    return faiss.index_factory(dim, spec, faiss_metric(metric))


def faiss_metric(metric: Metric) -> int:
    """Return FAISS's number of a metric; cosine is the inner product of unit vectors."""
    chosen: int = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return chosen


def _innermost(index: Any) -> Any:
    kind = faiss.downcast_index(index)
    return _innermost(kind.index) if isinstance(kind, faiss.IndexPreTransform) else kind


def _parameters(index: Any, effort: int, selector: Any) -> Any:
    """Return search parameters of the very type that the index wants."""
    kind = faiss.downcast_index(index)
    if isinstance(kind, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(kind.index, effort, selector))
    chosen: dict[str, Any] = {} if selector is None else {"sel": selector}
    if isinstance(kind, faiss.IndexIVFRaBitQ):
        return faiss.IVFRaBitQSearchParameters(nprobe=effort, qb=kind.qb, **chosen)
    if isinstance(kind, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=effort, **chosen)
    if isinstance(kind, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort, **chosen)
    if isinstance(kind, faiss.IndexRaBitQ):
        return faiss.RaBitQSearchParameters(qb=kind.qb, **chosen)
    return faiss.SearchParameters(**chosen) if chosen else None
