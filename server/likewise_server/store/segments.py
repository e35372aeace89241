"""Segment files: immutable, and worth nothing without the row that names them.

A file holds sections one after the other: `rows` float32 or float16, `vids` int64, `squares` float32, the `ids`
of the items and where each ends, and, of an approximate segment, `codes`, a FAISS index over the positions of
the rows. Where they begin and their
SHA-256 stand in the row's `meta`. A file that does not match its row is moved to `quarantine/`, and everything
is still in the database.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss as untyped
import numpy as np
from pydantic import BaseModel

from likewise_server.store import failpoints
from likewise_server.store.approximate import Approximation, Point
from likewise_server.store.parts import Names, Part
from likewise_server.store.types import Storage

if TYPE_CHECKING:
    from pathlib import Path

    from likewise_server.store.gpu import Gpu
    from likewise_server.store.parts import Rows

faiss: Any = untyped  # its stubs know half of it
FLAT = "Flat"  # the factory of a segment whose rows are compared one by one
QUICK_BYTES = 256 * 2**20  # of rows whose checksum is worked out before they are used; more are checked behind
_COLUMNS = "id, collection_id, file, factory, row_count, up_to_seq, bytes, sha256, faiss_version, measured_recall, meta"


class DamagedSegment(Exception):
    """The file is missing, was changed, or is not what its row says."""


class Section(BaseModel):
    """A part of a file."""

    start: int
    bytes: int
    sha256: str


class Meta(BaseModel, frozen=True):
    """What a row says of its file. The segment took in all items with `after_vid` < vid ≤ `last_vid`."""

    after_vid: int
    last_vid: int
    storage: Storage
    sections: dict[str, Section]
    points: list[Point] = []


class Written(BaseModel):
    """A complete file that no row names yet."""

    file: str
    bytes: int
    factory: str
    row_count: int
    up_to_seq: int
    meta: Meta

    @property
    def measured_recall(self) -> float | None:
        """The recall at the first operating point."""
        return self.meta.points[0].recall if self.meta.points else None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A row of `segments`: the file holds rows of the collection as of write `up_to_seq`."""

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
    meta: Meta


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment in use: its row, and what finds near rows without looking at all, if it has that, and ids."""

    row: SegmentRow
    approximation: Approximation | None
    names: Names


def digest_of(meta: Meta) -> str:
    """Return the SHA-256 of what a row says of its file, the file's own checksums among it."""
    return hashlib.sha256(meta.model_dump_json().encode()).hexdigest()


class SegmentFiles:
    """The folders `segments/` and `quarantine/` of a data directory."""

    def __init__(self, data: Path, gpu: Gpu | None = None) -> None:
        self._gpu = gpu
        self.folder = data / "segments"
        self.quarantined = data / "quarantine"
        for folder in (self.folder, self.quarantined):
            folder.mkdir(mode=0o700, exist_ok=True)

    def verify(self, row: SegmentRow, *, skip_rows: bool = False) -> None:
        """Raise DamagedSegment unless the file is the one that was written; its rows too, unless skipped."""
        if digest_of(row.meta) != row.sha256:
            raise DamagedSegment(f"segment {row.file}: its row was changed")
        try:
            with (self.folder / row.file).open("rb") as file:
                if os.fstat(file.fileno()).st_size != row.bytes:
                    raise DamagedSegment(f"segment {row.file}: its contents are not what was written")
                for name, section in row.meta.sections.items():
                    if not (skip_rows and name == "rows") and _digest(file.fileno(), section) != section.sha256:
                        raise DamagedSegment(f"segment {row.file}: its contents are not what was written")
        except OSError as error:
            raise DamagedSegment(f"segment {row.file}: {error.strerror or error}") from error

    def checks_behind(self, row: SegmentRow) -> bool:
        """Return whether the rows are too many to be checked before they are used."""
        rows = row.meta.sections.get("rows")
        return rows is not None and rows.bytes > QUICK_BYTES

    def load(self, row: SegmentRow, dim: int) -> Part:
        """Map a segment; raises DamagedSegment. Nothing is parsed before its checksum is right."""
        self.verify(row, skip_rows=self.checks_behind(row))
        path = self.folder / row.file
        kind: Any = np.float16 if row.meta.storage == "fp16" else np.float32
        try:
            vids = self._array(path, row.meta.sections["vids"], np.int64)
            squares = self._array(path, row.meta.sections["squares"], np.float32)
            rows: Rows = self._mapped(path, row.meta.sections["rows"], kind, dim)
            approximation = self._approximation(path, row, rows)
            text = self._mapped(path, row.meta.sections["ids"], np.uint8, 1)
            names = Names(memoryview(text.reshape(-1)), self._array(path, row.meta.sections["id_ends"], np.int64))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DamagedSegment(f"segment {row.file}: {error}") from error
        if not len(vids) == len(squares) == len(rows) == len(names.ends) == row.row_count:
            raise DamagedSegment(f"segment {row.file}: it is not of this collection")
        return Part.of(vids, rows, squares, Segment(row, approximation, names))

    def _array(self, path: Path, section: Section, kind: Any) -> Any:
        return np.fromfile(path, kind, section.bytes // np.dtype(kind).itemsize, offset=section.start)

    def _mapped(self, path: Path, section: Section, kind: Any, dim: int) -> Any:
        if not section.bytes:
            return np.empty((0, dim), kind)
        mapped: Any = np.memmap(path, kind, "r", section.start, (section.bytes // (dim * np.dtype(kind).itemsize), dim))
        if section.bytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2:
            with suppress(AttributeError, OSError):  # a hint: what is beside a row is not worth its memory
                mapped._mmap.madvise(mmap.MADV_RANDOM)  # noqa: SLF001
        return np.asarray(mapped)

    def _approximation(self, path: Path, row: SegmentRow, rows: Rows) -> Approximation | None:
        section = row.meta.sections.get("codes")
        if section is None:
            return None
        with path.open("rb") as file:
            file.seek(section.start)
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        if index.ntotal != row.row_count:
            raise ValueError(f"{index.ntotal} codes for {row.row_count} rows")
        return Approximation(index, row.meta.points, self._gpu.hold(index, rows) if self._gpu else None)

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


def _digest(descriptor: int, section: Section) -> str:
    digest, at, end = hashlib.sha256(), section.start, section.start + section.bytes
    while at < end:
        piece = os.pread(descriptor, min(2**20, end - at), at)
        if not piece:
            break
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


@functools.lru_cache(1024)
def _meta(text: str) -> Meta:
    """Return what a row says; each search looks at the rows, and they change seldom.

    Of a damaged one, something that does not have the row's checksum either.
    """
    try:
        return Meta.model_validate_json(text)
    except ValueError:
        return Meta(after_vid=0, last_vid=0, storage="fp32", sections={})


def of_collection(db: sqlite3.Connection, collection_id: int) -> list[SegmentRow]:
    """Return the rows of a collection's segments, those with the oldest items first."""
    found = db.execute(
        f"SELECT {_COLUMNS} FROM segments WHERE collection_id = ?",  # noqa: S608
        (collection_id,),
    ).fetchall()
    rows = [SegmentRow(*(*row, _meta(text))) for *row, text in found]
    return sorted(rows, key=lambda row: row.meta.last_vid)


def chained(rows: list[SegmentRow]) -> list[SegmentRow]:
    """Return those at the beginning that follow one another without a gap, as one that was set aside leaves."""
    last = 0
    for number, row in enumerate(rows):
        if row.meta.after_vid != last:
            return rows[:number]
        last = row.meta.last_vid
    return rows


def publish(
    db: sqlite3.Connection, collection_id: int, written: Written, only_if: list[int] | None = None
) -> list[str] | None:
    """Make a file count, in place of the segments whose items it took in; return their files.

    None if the collection is gone, or its segments are no longer those with the ids `only_if`.
    """
    if db.execute("SELECT 1 FROM collections WHERE id = ?", (collection_id,)).fetchone() is None:
        return None
    there = of_collection(db, collection_id)
    if only_if is not None and [row.id for row in there] != only_if:
        return None
    old = [row for row in there if row.meta.last_vid > written.meta.after_vid]
    db.executemany("DELETE FROM segments WHERE id = ?", [(row.id,) for row in old])
    db.execute(
        "INSERT INTO segments (collection_id, file, factory, row_count, up_to_seq, bytes, sha256,"
        " faiss_version, measured_recall, created_at, meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            collection_id,
            written.file,
            written.factory,
            written.row_count,
            written.up_to_seq,
            written.bytes,
            digest_of(written.meta),
            faiss.__version__,
            written.measured_recall,
            time.time(),
            written.meta.model_dump_json(),
        ),
    )
    return [row.file for row in old]


def forget(db: sqlite3.Connection, segment_id: int) -> None:
    """Delete the row of a segment that turned out bad."""
    db.execute("DELETE FROM segments WHERE id = ?", (segment_id,))
