"""Vectors: checked on the way in, kept as bytes with a checksum, and put in the form that is searched."""

from __future__ import annotations

import json
import logging
import zlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from likewise_server.errors import FailedPrecondition, Internal, InvalidArgument

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.store.types import Bool, Float32, Int64, Metric

logger = logging.getLogger(__name__)

MAX_ABS = 1e15
"""Larger elements could overflow a float32 inner product."""
CHUNK = 4096
_STORED = np.dtype("<f4")

VectorRow: TypeAlias = tuple[int, bytes, int]


def shaped(vector: ArrayLike, dim: int) -> Float32:
    """Return a vector as `(dim,)` float32.

    Raises InvalidArgument for what is no vector and FailedPrecondition for another dimension.
    """
    if isinstance(vector, np.ndarray) and vector.dtype == np.float32 and vector.shape == (dim,):
        return vector
    array = _as_float32(vector)
    if array.ndim != 1:
        raise InvalidArgument(f"A vector has one axis; this has shape {array.shape}.")
    _check_dim(array.shape[0], dim)
    return array


def checked_queries(queries: ArrayLike, dim: int, metric: Metric) -> Float32:
    """Return queries as `(n, dim)` float32; raises as `shaped` does and the `fault` of any."""
    array = _as_float32(queries)
    if array.ndim != 2:  # noqa: PLR2004  # rows and columns
        raise InvalidArgument(f"Queries are an array (n, dim); this has shape {array.shape}.")
    _check_dim(array.shape[1], dim)
    if not usable(array, metric).all():
        raise fault(array, metric)
    return array


def _as_float32(values: ArrayLike) -> Float32:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidArgument("A vector must be numbers only.") from None


def _check_dim(given: int, dim: int) -> None:
    if given != dim:
        raise FailedPrecondition(f"The vector has {given} dimensions, the collection {dim}.")


def usable(rows: Float32, metric: Metric) -> Bool:
    """Tell which of the rows `(n, d)` can be stored and compared, as `(n,)`."""
    least, most = rows.min(axis=1), rows.max(axis=1)
    good: Bool = (least >= -MAX_ABS) & (most <= MAX_ABS)  # NaN is neither
    if metric == "cosine":
        tiny = np.finfo(np.float32).tiny
        short = good & (np.maximum(-least, most) < tiny)  # only for these the length is worth computing
        if short.any():
            good[short] = _norms(rows[short]) >= tiny
    return good


def fault(rows: Float32, metric: Metric) -> InvalidArgument:
    """Return the first thing wrong with rows `(n, d)`, not all of which are usable."""
    if not np.isfinite(rows).all():
        return InvalidArgument("The vector holds NaN or infinity.")
    if metric != "cosine" or float(np.abs(rows).max()) > MAX_ABS:
        return InvalidArgument(f"The vector holds a number beyond ±{MAX_ABS:g}; scale it down.")
    return InvalidArgument("The vector is all zeros, which has no direction for the cosine.")


def _norms(rows: Float32) -> NDArray[np.float64]:
    norms = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):  # float64 copies of everything would be large
        wide = rows[start : start + CHUNK].astype(np.float64)
        norms[start : start + CHUNK] = np.sqrt((wide * wide).sum(axis=1))
    return norms


def searchable(rows: Float32, metric: Metric) -> Float32:
    """Return rows `(n, d)` as the index holds them: of length one for the cosine, else as they are."""
    return normalised(rows) if metric == "cosine" else np.ascontiguousarray(rows, dtype=np.float32)


def normalised(rows: Float32) -> Float32:
    """Return rows `(n, d)` of length one, computed in float64; rows of zeros stay zeros."""
    norms = _norms(rows)[:, np.newaxis]
    norms[norms == 0] = 1
    units = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), CHUNK):
        units[start : start + CHUNK] = rows[start : start + CHUNK] / norms[start : start + CHUNK]
    return units


def as_stored(rows: Float32) -> bytes:
    """Return the bytes of vectors, row after row, float32 little-endian."""
    return rows.astype(_STORED, copy=False).tobytes()


def checksums(rows: Float32) -> list[int]:
    """Return the CRC-32 of the stored bytes of each of the rows `(n, d)`."""
    return [zlib.crc32(row) for row in np.ascontiguousarray(rows, _STORED)]


def decode(data: bytes, crc: int, dim: int, ext_id: str) -> Float32:
    """Return a stored vector, `(dim,)` float32; raises Internal if its bytes are damaged."""
    if not intact(data, crc, dim):
        raise Internal(f"The stored vector of item {ext_id!r} is damaged. Run fsck, then add the item again.")
    return np.frombuffer(data, dtype=_STORED).astype(np.float32)


def intact(data: object, crc: int, dim: int) -> bool:
    """Tell whether stored bytes are what was written."""
    # A bad page can have anything where the bytes were.
    return isinstance(data, bytes) and len(data) == 4 * dim and zlib.crc32(data) == crc


def stored_vids(db: sqlite3.Connection, collection_id: int, after_vid: int = 0) -> list[int]:
    """Return the vids of a collection past `after_vid`, ascending."""
    # A + keeps SQLite from using a column. All of a collection is quickest found in an index that begins with it,
    # what was written lately by vid, though the items of other collections stand between.
    condition = "+collection_id = ? AND vid > ?" if after_vid else "collection_id = ? AND +vid > ?"
    found = db.execute(f"SELECT vid FROM items WHERE {condition}", (collection_id, after_vid))  # noqa: S608
    return sorted(vid for (vid,) in found)


def stored_rows(db: sqlite3.Connection, wanted: Sequence[int], dim: int) -> Iterator[tuple[Int64, Float32, list[int]]]:
    """Yield chunks of the rows with these ascending vids: vids `(n,)`, vectors `(n, dim)`, damaged vids.

    By vid, and not by a join with `items`, which would sort all the vectors.
    """
    for start in range(0, len(wanted), CHUNK):
        chunk = db.execute(
            "SELECT vid, data, crc FROM vectors WHERE vid IN (SELECT value FROM json_each(?)) ORDER BY vid",
            (json.dumps(wanted[start : start + CHUNK]),),
        ).fetchall()
        good = [row for row in chunk if intact(row[1], row[2], dim)]
        damaged = [row[0] for row in chunk if not intact(row[1], row[2], dim)] if len(good) < len(chunk) else []
        vids = np.fromiter((row[0] for row in good), dtype=np.int64, count=len(good))
        rows = np.frombuffer(b"".join(row[1] for row in good), dtype=_STORED).reshape(len(good), dim)
        yield vids, rows.astype(np.float32, copy=False), damaged


def intact_rows(db: sqlite3.Connection, wanted: Sequence[int], dim: int) -> Float32:
    """Return the vectors `(n, dim)` with these ascending vids; raises Internal if any is damaged or gone."""
    found = [np.empty((0, dim), np.float32), *(rows for _, rows, _ in stored_rows(db, wanted, dim))]
    stacked = np.concatenate(found)
    if len(stacked) < len(wanted):
        raise Internal(
            f"{len(wanted) - len(stacked)} stored vectors are damaged. Run fsck, then add those items again."
        )
    return stacked


def log_damaged(collection: str, count: int) -> None:
    """Say that searches go on without some rows."""
    logger.error("Collection %r: %d damaged vectors are left out of searches; run fsck", collection, count)
