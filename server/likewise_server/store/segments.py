"""Segment files: vids and a FAISS index, immutable, and worth nothing without the row that names them.

One file holds a NumPy array of vids `(n,)` int64 and then what `faiss.write_index` writes. It is made under a
temporary name, synced and renamed; its row in `segments`, with the SHA-256, is what makes it count. A file
that does not match its row is moved to `quarantine/`, and everything is still in the database.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import faiss
import numpy as np

from likewise_server.store import failpoints

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from likewise_server.store.types import Float32, Int64, Metric

FACTORY = "Flat"
_COLUMNS = "id, collection_id, file, factory, row_count, up_to_seq, bytes, sha256, faiss_version, measured_recall"

logger = logging.getLogger(__name__)


class DamagedSegment(Exception):
    """The file is missing, was changed, or is not what its row says."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A row of `segments`: the file holds the rows of the collection as of write `up_to_seq`."""

    id: int
    collection_id: int
    file: str
    factory: str
    row_count: int
    up_to_seq: int
    bytes: int
    sha256: str
    faiss_version: str
    measured_recall: float | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in memory: `vids` `(n,)` ascending, `rows` `(n, d)` a view into `flat`, a faiss.IndexFlat."""

    vids: Int64
    rows: Float32
    flat: Any


@dataclass(frozen=True, slots=True)
class Written:
    """A complete file that no row names yet."""

    file: str
    bytes: int
    sha256: str


def build(vids: Int64, rows: Float32, metric: Metric) -> Segment:
    """Make a segment from searchable rows `(n, d)`."""
    flat = faiss.IndexFlat(rows.shape[1], _faiss_metric(metric))
    flat.add(rows)
    return Segment(vids, _view(flat), flat)


def _faiss_metric(metric: Metric) -> int:
    chosen: int = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return chosen


def _view(flat: Any) -> Float32:
    """Return the rows inside a flat index without a copy; they live as long as the index does."""
    if flat.ntotal == 0:
        return np.empty((0, flat.d), np.float32)
    # The downcast object owns nothing: `flat` itself must be kept for as long as the rows are.
    data = faiss.downcast_index(flat).get_xb()  # type: ignore[attr-defined]
    rows: Float32 = faiss.rev_swig_ptr(data, flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return rows


class _Hashing:
    """A file that hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)


class SegmentFiles:
    """The folders `segments/` and `quarantine/` of a data directory."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "segments"
        self.quarantined = data / "quarantine"
        for folder in (self.folder, self.quarantined):
            folder.mkdir(mode=0o700, exist_ok=True)

    def write(self, collection_id: int, segment: Segment) -> Written:
        """Write a segment so that it survives a power cut, complete or not at all; raises OSError."""
        name = f"{collection_id}-{uuid.uuid4().hex}.segment"
        temporary = self.folder / f"{name}.tmp"
        failpoints.hit("segment.after_build")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                hashing = _Hashing(file)
                np.lib.format.write_array(hashing, segment.vids, allow_pickle=False)
                faiss.write_index(segment.flat, faiss.PyCallbackIOWriter(hashing.write))  # type: ignore[attr-defined]
                file.flush()
                failpoints.hit("segment.after_write")
                os.fsync(file.fileno())
                size = file.tell()
            failpoints.hit("segment.after_fsync")
            temporary.rename(self.folder / name)
            failpoints.hit("segment.after_rename")
            _fsync_folder(self.folder)
            failpoints.hit("segment.after_folder_fsync")
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return Written(name, size, hashing.sha256.hexdigest())

    def verify(self, row: SegmentRow) -> None:
        """Raise DamagedSegment unless the file is the one that was written."""
        try:
            with (self.folder / row.file).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedSegment(f"segment {row.file}: {error.strerror or error}") from error
        if digest != row.sha256:
            raise DamagedSegment(f"segment {row.file}: its contents are not what was written")

    def load(self, row: SegmentRow, dim: int, metric: Metric) -> Segment:
        """Read a segment; raises DamagedSegment. Nothing is parsed before its checksum is right."""
        self.verify(row)
        try:
            with (self.folder / row.file).open("rb") as file:
                vids = np.load(file, allow_pickle=False)
                flat = faiss.read_index(faiss.PyCallbackIOReader(file.read))  # type: ignore[attr-defined]
        except (OSError, ValueError, RuntimeError) as error:
            raise DamagedSegment(f"segment {row.file}: {error}") from error
        shape = (flat.d, flat.metric_type, flat.ntotal)
        if shape != (dim, _faiss_metric(metric), len(vids)) or len(vids) != row.row_count:
            raise DamagedSegment(f"segment {row.file}: it is not of this collection")
        return Segment(vids, _view(flat), flat)

    def quarantine(self, file: str) -> None:
        """Move a bad file out of the way, for a person to look at; a missing one is no error."""
        with suppress(FileNotFoundError):
            (self.folder / file).rename(self.quarantined / f"{time.time_ns()}-{file}")
        failpoints.hit("quarantine.after_rename")

    def remove(self, file: str) -> None:
        """Delete a file that no row names any longer."""
        with suppress(FileNotFoundError):
            (self.folder / file).unlink()

    def unreferenced(self, db: sqlite3.Connection) -> list[str]:
        """Return the files that no row names: unfinished builds and what was replaced."""
        there = sorted(path.name for path in self.folder.iterdir())
        named = {name for (name,) in db.execute("SELECT file FROM segments")}
        return [name for name in there if name not in named]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current(db: sqlite3.Connection, collection_id: int) -> SegmentRow | None:
    """Return the row of a collection's segment, if it has one."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM segments WHERE collection_id = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
        (collection_id,),
    ).fetchone()
    return SegmentRow(*row) if row else None


def replace(
    db: sqlite3.Connection, collection_id: int, written: Written, row_count: int, up_to_seq: int
) -> list[str] | None:
    """Make a file count, in place of those before it, which are returned; None if the collection is gone."""
    if db.execute("SELECT 1 FROM collections WHERE id = ?", (collection_id,)).fetchone() is None:
        return None
    old = [name for (name,) in db.execute("SELECT file FROM segments WHERE collection_id = ?", (collection_id,))]
    db.execute("DELETE FROM segments WHERE collection_id = ?", (collection_id,))
    db.execute(
        "INSERT INTO segments (collection_id, file, factory, row_count, up_to_seq, bytes, sha256,"
        " faiss_version, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            collection_id,
            written.file,
            FACTORY,
            row_count,
            up_to_seq,
            written.bytes,
            written.sha256,
            faiss.__version__,
            time.time(),
        ),
    )
    return old


def forget(db: sqlite3.Connection, segment_id: int) -> None:
    """Delete the row of a segment that turned out bad."""
    db.execute("DELETE FROM segments WHERE id = ?", (segment_id,))
