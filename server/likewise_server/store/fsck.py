"""Checks everything that can go wrong on a disk, and sets right what is derived."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import catalog, segments, vectors
from likewise_server.store.segments import DamagedSegment, SegmentFiles
from likewise_server.store.types import Float32, FsckReport, Int64

if TYPE_CHECKING:
    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import Indexes, Snapshot
    from likewise_server.store.maintenance import Maintenance
    from likewise_server.store.schema import ReadPool
    from likewise_server.store.writer import Writer


@dataclass(slots=True)
class _Findings:
    checked: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rebuild: bool = False
    recount: bool = False


class Fsck:
    """Checks a store while it is in use: every collection is looked at in one state of the database."""

    def __init__(
        self, reads: ReadPool, writer: Writer, files: SegmentFiles, indexes: Indexes, maintenance: Maintenance
    ) -> None:
        self._reads = reads
        self._writer = writer
        self._files = files
        self._indexes = indexes
        self._maintenance = maintenance

    def run(self, collection: str, *, repair: bool) -> FsckReport:
        """Check one collection by name, or all; with `repair`, make anew what the database can give."""
        checked: Counter[str] = Counter()
        problems: list[str] = []
        repaired: list[str] = []
        try:
            with self._reads.transaction() as db:
                targets = [catalog.find(db, collection)] if collection else catalog.page(db, "", -1)
                problems += _database(db)
        except sqlite3.DatabaseError as error:
            return FsckReport({}, [f"database: {error}; restore it from a backup"], [])
        for target in targets:
            found = self._collection(target)
            checked += found.checked
            problems += found.problems
            if repair and found.recount:
                self._writer.call(lambda db, i=target.id: _recount(db, i))  # type: ignore[misc]  # bound default
                repaired.append(f"collection {target.name!r}: items counted again")
            if repair and found.rebuild:
                self._maintenance.rebuild(target.id)
                repaired.append(f"collection {target.name!r}: segment and index built anew")
        if not collection:
            self._leftovers(problems, repaired, repair=repair)
        return FsckReport(dict(checked), problems, repaired)

    def _collection(self, target: Collection) -> _Findings:
        found = _Findings(Counter(collections=1, items=0, vectors=0, segments=0, heads=0))
        index = self._indexes.of(target.id, target.dim, target.metric)
        with index.building, self._reads.transaction() as db:
            now = catalog.find_id(db, target.id)
            _items(db, now, found)
            _heads(db, now, found)
            vids, rows = self._vectors(db, now, found)
            self._segment(db, now, vids, rows, found)
            snapshot = index.snapshot
            if snapshot is not None and snapshot.seq == now.seq:
                _index(snapshot, now, vids, rows, found)
        return found

    def _vectors(self, db: sqlite3.Connection, now: Collection, found: _Findings) -> tuple[Int64, Float32]:
        """Check every vector; return the vids and searchable rows of the good ones."""
        all_vids, all_rows = [np.empty(0, np.int64)], [np.empty((0, now.dim), np.float32)]
        for vids, rows, damaged in vectors.stored_rows(db, vectors.stored_vids(db, now.id), now.dim):
            found.checked["vectors"] += len(vids) + len(damaged)
            all_vids.append(vids)
            all_rows.append(vectors.searchable(rows, now.metric))
            for vid in damaged:
                (ext_id,) = db.execute("SELECT ext_id FROM items WHERE vid = ?", (vid,)).fetchone()
                found.problems.append(
                    f"collection {now.name!r}: the vector of item {ext_id!r} is damaged; add the item again"
                )
        return np.concatenate(all_vids), np.concatenate(all_rows)

    def _segment(self, db: sqlite3.Connection, now: Collection, vids: Int64, rows: Float32, found: _Findings) -> None:
        row = segments.current(db, now.id)
        if row is None:
            return
        found.checked["segments"] += 1
        try:
            segment = self._files.load(row, now.dim, now.metric)
        except DamagedSegment as error:
            found.problems.append(f"collection {now.name!r}: {error}")
            found.rebuild = True
            return
        both, here, there = np.intersect1d(vids, segment.vids, assume_unique=True, return_indices=True)
        last = segment.vids[-1] if len(segment.vids) else 0
        if len(both) != np.count_nonzero(vids <= last) or not np.array_equal(rows[here], segment.rows[there]):
            found.problems.append(f"collection {now.name!r}: segment {row.file} differs from the database")
            found.rebuild = True

    def _leftovers(self, problems: list[str], repaired: list[str], *, repair: bool) -> None:
        # Only what was there before: a checkpoint may be writing a file just now.
        with self._reads.transaction() as db:
            files = [name for name in self._files.unreferenced(db) if not name.endswith(".tmp")]
        for name in files:
            problems.append(f"segments/{name}: no collection uses this file")
            if repair:
                self._files.remove(name)
                repaired.append(f"segments/{name}: removed")


def _database(db: sqlite3.Connection) -> list[str]:
    lines = [f"database: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    dangling = db.execute("PRAGMA foreign_key_check").fetchall()
    lines += [f"database: row {row} of {table} refers to a missing row of {to}" for table, row, to, _ in dangling]
    return [f"{line}; restore it from a backup" for line in lines]


def _items(db: sqlite3.Connection, now: Collection, found: _Findings) -> None:
    there, bad_json = db.execute(
        "SELECT count(*), coalesce(sum(NOT json_valid(attributes)), 0) FROM items WHERE collection_id = ?",
        (now.id,),
    ).fetchone()
    found.checked["items"] += there
    if there != now.item_count:
        found.problems.append(f"collection {now.name!r}: it says {now.item_count} items and has {there}")
        found.recount = True
    if bad_json:
        found.problems.append(f"collection {now.name!r}: {bad_json} items have damaged attributes; add them again")
    missing = db.execute(
        "SELECT ext_id FROM items LEFT JOIN vectors USING (vid) WHERE collection_id = ? AND data IS NULL",
        (now.id,),
    )
    found.problems.extend(
        f"collection {now.name!r}: item {ext_id!r} has no vector; add it again" for (ext_id,) in missing
    )


def _heads(db: sqlite3.Connection, now: Collection, found: _Findings) -> None:
    rows = db.execute("SELECT name, version, data, crc FROM heads WHERE collection_id = ?", (now.id,))
    for name, version, data, crc in rows:
        found.checked["heads"] += 1
        if zlib.crc32(data) != crc:
            found.problems.append(
                f"collection {now.name!r}: version {version} of head {name!r} is damaged; train it again"
            )


def _index(snapshot: Snapshot, now: Collection, vids: Int64, rows: Float32, found: _Findings) -> None:
    alive = np.concatenate([part.vids[part.alive] for part in snapshot.parts])
    same = np.array_equal(alive, vids) and all(
        np.array_equal(rows[np.searchsorted(vids, part.vids[part.alive])], part.rows[part.alive])
        for part in snapshot.parts
    )
    if not same:
        found.problems.append(f"collection {now.name!r}: the index in memory differs from the database")
        found.rebuild = True


def _recount(db: sqlite3.Connection, collection_id: int) -> None:
    db.execute(
        "UPDATE collections SET item_count ="
        " (SELECT count(*) FROM items WHERE collection_id = collections.id) WHERE id = ?",
        (collection_id,),
    )
