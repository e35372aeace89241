"""Checks everything that can go wrong on a disk, and sets right what is derived."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import Internal
from likewise_server.store import catalog, heads, items, segments, vectors
from likewise_server.store.segments import DamagedSegment, SegmentFiles
from likewise_server.store.types import Float32, FsckReport, Int64

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import Indexes, Snapshot
    from likewise_server.store.maintenance import Maintenance
    from likewise_server.store.parts import Part
    from likewise_server.store.schema import ReadPool
    from likewise_server.store.writer import Writer


DRIFTED = "the index in memory differs from the database"


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
        except Internal as error:  # it cannot even be walked through
            return FsckReport({}, [f"database: {error.message}"], [])
        for target in targets:
            try:
                found = self._collection(target)
            except Internal as error:
                problems.append(f"collection {target.name!r}: {error.message}")
                continue
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
        index = self._indexes.of(target)
        with index.loading, self._reads.transaction() as db:
            now = catalog.find_id(db, target.id)
            _items(db, now, found)
            _heads(db, now, found)
            kept = self._segments(db, now, found)
            snapshot = index.snapshot if index.snapshot is not None and index.snapshot.seq == now.seq else None
            self._vectors(db, now, kept, snapshot, found)
        return found

    def _segments(self, db: sqlite3.Connection, now: Collection, found: _Findings) -> list[Part]:
        """Check the files; return what they hold."""
        kept = []
        for row in segments.of_collection(db, now.id):
            found.checked["segments"] += 1
            try:
                self._files.verify(row)
                kept.append(self._files.load(row, now.dim))
            except DamagedSegment as error:
                found.problems.append(f"collection {now.name!r}: {error}")
                found.rebuild = True
        return kept

    def _vectors(
        self, db: sqlite3.Connection, now: Collection, kept: Sequence[Part], snapshot: Snapshot | None, found: _Findings
    ) -> None:
        """Check every vector, and that segments and the index in memory have the same, piece by piece."""
        different: set[str] = set()
        alive = 0
        last = max((part.segment.row.meta.last_vid for part in kept if part.segment), default=0)
        for vids, rows, damaged in vectors.stored_rows(db, vectors.stored_vids(db, now.id), now.dim):
            found.checked["vectors"] += len(vids) + len(damaged)
            alive += len(vids)
            ready = vectors.searchable(rows, now.metric)
            if now.storage == "fp16":
                ready = ready.astype(np.float16).astype(np.float32)
            inside = _same(kept, vids, ready, different)
            if not found.rebuild and inside < np.count_nonzero(vids <= last):
                different.add("the segments lack rows of the database")
            if snapshot is not None and _same(_living(snapshot), vids, ready, different) < len(vids):
                different.add(DRIFTED)
            for vid in damaged:
                (ext_id,) = db.execute("SELECT ext_id FROM items WHERE vid = ?", (vid,)).fetchone()
                found.problems.append(
                    f"collection {now.name!r}: the vector of item {ext_id!r} is damaged; add the item again"
                )
        if snapshot is not None and snapshot.alive != alive:
            different.add(DRIFTED)
        found.problems += [f"collection {now.name!r}: {what}" for what in sorted(different)]
        found.rebuild |= bool(different)

    def _leftovers(self, problems: list[str], repaired: list[str], *, repair: bool) -> None:
        with self._reads.transaction() as db:
            files = [name for name in self._files.unreferenced(db) if not name.endswith(".tmp")]
        for name in files:
            with self._unless_building(name) as nobody_builds:
                with self._reads.transaction() as db:
                    left = nobody_builds and name in self._files.unreferenced(db)
                if not left:
                    continue
                problems.append(f"segments/{name}: no collection uses this file")
                if repair:
                    self._files.remove(name)
                    repaired.append(f"segments/{name}: removed")

    @contextmanager
    def _unless_building(self, name: str) -> Iterator[bool]:
        """Keep the collection that a file's name begins with from building; yield False if it just does."""
        number = name.partition("-")[0]
        index = self._indexes.peek(int(number)) if number.isdecimal() else None
        locks = [index.building, index.loading] if index is not None else []
        with ExitStack() as held:
            for lock in locks:
                if not lock.acquire(blocking=False):
                    yield False
                    return
                held.callback(lock.release)
            yield True


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
    found.problems.extend(
        f"collection {now.name!r}: the texts of item {ext_id!r} are damaged; add it again"
        for ext_id in items.damaged(db, now.id)
    )
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
    for name, version, sound in heads.checked(db, now.id):
        found.checked["heads"] += 1
        if not sound:
            found.problems.append(
                f"collection {now.name!r}: version {version} of head {name!r} is damaged; train it again"
            )


def _living(snapshot: Snapshot) -> list[Part]:
    """Return the parts of a snapshot that have any row alive."""
    return [part for part in snapshot.parts if len(part) > part.dead]


def _same(parts: Sequence[Part], vids: Int64, ready: Float32, different: set[str]) -> int:
    """Count the rows that parts have alive; note where they are not the ones given."""
    there = 0
    for part in parts:
        at = part.positions_of(vids)
        at = at[part.alive[at]]
        there += len(at)
        if not np.array_equal(part.taken(at), ready[np.isin(vids, part.vids[at])]):
            file = part.segment.row.file if part.segment else ""
            different.add(f"segment {file} differs from the database" if file else DRIFTED)
    return there


def _recount(db: sqlite3.Connection, collection_id: int) -> None:
    db.execute(
        "UPDATE collections SET item_count ="
        " (SELECT count(*) FROM items WHERE collection_id = collections.id) WHERE id = ?",
        (collection_id,),
    )
