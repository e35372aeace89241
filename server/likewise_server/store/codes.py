"""Rows in bytes, which prove of most rows that they are not among the nearest, at a quarter of the reading.

Each row is rounded to a byte a dimension with a scale of its own, and each query to two, so that the inner product of
the bytes is a sum of whole numbers, without rounding. How far a row is from its bytes is known, and by Cauchy and
Schwarz so is how far their products with a query can be from one another. What cannot be ruled out is compared in
full (exact.py): the answer is the same.
"""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.store.types import Bool, Float32, Int64

    Bytes = NDArray[np.int8]

LEAST = 4096  # rows from which on this is worth its beginning
LEAST_DIM = 128  # likewise; of shorter rows the products are not what takes the time
GROUP = 64  # rows of which the best one stands for all in finding the k-th best
MOST_SHARE = 1 / 16  # of the rows; where more cannot be ruled out, comparing all is no slower
_BLOCK = 8192  # rows at once: their bytes and products stay in the cache
_TOP = 127
_SMALL = 1e-30
_ROUNDING = 1e-6  # of the float32 arithmetic between whole numbers and bounds, relative to a row's length


class Codes:
    """The bytes of rows that only grow. What was handed out is never written again."""

    def __init__(self, dim: int) -> None:
        self._lock = threading.Lock()
        self._bytes: Bytes = np.empty((0, dim), np.int8)
        self._facts: Float32 = np.empty((3, 0), np.float32)  # scales, errors, lengths
        self._known = 0

    def __len__(self) -> int:
        return self._known

    @property
    def nbytes(self) -> int:
        """Return how much memory they take."""
        return self._bytes.nbytes + self._facts.nbytes

    def of(self, rows: Float32) -> tuple[Bytes, Float32]:
        """Return bytes `(n, d)` and their scales, errors and lengths `(3, n)`.

        `rows` `(n, d)` are those known already, and perhaps more.
        """
        with self._lock:
            if self._known < len(rows):
                self._grow(len(rows))
                for start in range(self._known, len(rows), _BLOCK):
                    stop = min(start + _BLOCK, len(rows))
                    self._bytes[start:stop], self._facts[:, start:stop] = _rounded(rows[start:stop])
                self._known = len(rows)
            return self._bytes[: len(rows)], self._facts[:, : len(rows)]

    def taken(self, positions: Int64) -> Codes:
        """Return the codes of the rows at these positions, those that are known; ascending."""
        with self._lock:
            known = positions[positions < self._known]
            made = Codes(self._bytes.shape[1])
            made._bytes, made._facts = self._bytes[known], self._facts[:, known]
            made._known = len(known)
            return made

    def _grow(self, count: int) -> None:
        if count <= len(self._bytes):
            return
        known, capacity = self._known, max(count, 2 * len(self._bytes))
        bytes_, facts = np.empty((capacity, self._bytes.shape[1]), np.int8), np.empty((3, capacity), np.float32)
        bytes_[:known], facts[:, :known] = self._bytes[:known], self._facts[:, :known]
        self._bytes, self._facts = bytes_, facts


def candidates(codes: Codes, rows: Float32, allowed: Bool, queries: Float32, k: int) -> list[Int64 | None]:
    """Return for each query the positions of all allowed rows that may be among its k nearest by inner product.

    None for all where bytes are no help here, and for a query that they leave too many rows.
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    if rows.shape[1] < LEAST_DIM or 4 * k * GROUP > len(rows) or not fast():
        return [None] * len(queries)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        return [None] * len(queries)
    bytes_, (scales, errors, sizes) = codes.of(rows)
    columns, weights, unseen = _halves(queries / lengths[:, np.newaxis])
    slack = errors + (unseen + _ROUNDING) * (sizes + errors)
    if not np.isfinite(slack).all():
        return [None] * len(queries)
    # No row's product with a query of length 1 is under `lowest`, and none over that and twice its slack.
    lowest = _products(bytes_, columns, weights)
    lowest *= scales
    lowest -= slack
    if not allowed.all():
        np.copyto(lowest, -np.inf, where=~allowed)
    whole = len(rows) // GROUP * GROUP
    best = lowest[:, :whole].reshape(len(queries), -1, GROUP).max(axis=2)
    floor = np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k]
    slack *= 2
    open_ = [np.flatnonzero(low >= least - slack) for low, least in zip(lowest, floor, strict=True)]
    return [at if len(at) <= MOST_SHARE * len(rows) else None for at in open_]


def _rounded(rows: Float32) -> tuple[Bytes, Float32]:
    """Return bytes, and scales, errors and lengths."""
    most = np.abs(rows).max(axis=1)
    scales = np.where(most > 0, most, 1) / np.float32(_TOP)
    steps = rows / scales[:, np.newaxis]
    rounded = np.rint(steps)
    # Squared in steps, which are neither too small nor too large for that.
    lengths = np.sqrt(np.einsum("ij,ij->i", steps, steps)) * scales
    steps -= rounded
    errors = np.sqrt(np.einsum("ij,ij->i", steps, steps)) * scales
    errors[(most > 0) & (most < _SMALL)] = np.inf  # float32 has too few digits left there
    return rounded.astype(np.int8), np.stack([scales, errors, lengths])


def _halves(queries: Float32) -> tuple[Bytes, Float32, float]:
    """Return queries of length 1 as bytes `(d, 2q)`, two columns each, the finer ones last.

    With them weights `(q, 2q)` that put two columns together, and the length of the most that is left of a query.
    """
    left, columns, scales = queries.astype(np.float64), [], []
    for _ in range(2):
        scale = np.maximum(np.abs(left).max(axis=1), np.finfo(np.float32).tiny).astype(np.float32) / np.float32(_TOP)
        rounded = np.rint(left / scale[:, np.newaxis]).clip(-_TOP, _TOP)
        left -= rounded * scale[:, np.newaxis]
        columns.append(rounded.astype(np.int8))
        scales.append(np.diag(scale))
    return (
        np.ascontiguousarray(np.concatenate(columns).T),
        np.concatenate(scales, axis=1),
        float(np.linalg.norm(left, axis=1).max()),
    )


def _products(bytes_: Bytes, columns: Bytes, weights: Float32) -> Float32:
    """Return the products of bytes with queries, `(q, n)`, but for the rows' scales."""
    made = np.empty((len(weights), len(bytes_)), np.float32)
    for start in range(0, len(bytes_), _BLOCK):
        whole = _whole(bytes_[start : start + _BLOCK], columns)
        np.matmul(weights, whole.astype(np.float32).T, out=made[:, start : start + _BLOCK])
    return made


def _whole(left: Bytes, right: Bytes) -> NDArray[np.int32]:
    """Multiply bytes, (n, d) by (d, m), into whole numbers (n, m)."""
    import torch  # noqa: PLC0415  # a second, where only files are looked at

    product: Any = torch._int_mm(torch.from_numpy(left), torch.from_numpy(right))  # noqa: SLF001
    return np.asarray(product.numpy())


@cache
def fast() -> bool:
    """Return whether this machine multiplies bytes faster than floats; without VNNI or AMX torch is slower."""
    left, right = np.ones((_BLOCK, 512), np.int8), np.ones((512, 8), np.int8)
    floats, queries = left.astype(np.float32), right[:, ::2].astype(np.float32)  # a query is two columns of bytes
    try:
        if not (_whole(left, right) == left.shape[1]).all():
            return False
    except (ImportError, AttributeError, RuntimeError):  # no torch here, or one without this
        return False
    return _seconds(lambda: _whole(left, right)) < _seconds(lambda: queries.T @ floats.T)


def _seconds(action: Any) -> float:
    """Return the least of five."""
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return min(taken)
