"""Derived things are loaded, built and replaced here; each can be lost at any moment and made again.

A build is: read the rows in one transaction → write a file aside → name it in `segments` (this commit is the
moment it counts) → use it in memory → remove the files before it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import Internal, LikewiseError, NotFound, Unavailable
from likewise_server.store import catalog, failpoints, policy, segments, vectors
from likewise_server.store.listing import Lister
from likewise_server.store.schema import translated
from likewise_server.store.segments import FLAT, DamagedSegment, SegmentFiles, SegmentRow
from likewise_server.threads import LastingThread

if TYPE_CHECKING:
    import sqlite3

    from likewise_server.store.builder import Builder
    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import CollectionIndex, Indexes, Snapshot
    from likewise_server.store.items import Change
    from likewise_server.store.parts import Part
    from likewise_server.store.schema import ReadPool
    from likewise_server.store.types import Float32, Int64
    from likewise_server.store.writer import Writer

logger = logging.getLogger(__name__)

QUIET_S = 2.0  # a collection that nobody searches is left alone while it is being filled
LOAD_MOST = 65_536  # rows that are read into memory; more go into a segment first


class Maintenance:
    """Loads indexes, and builds segments in a thread of its own when they are due."""

    def __init__(
        self, reads: ReadPool, writer: Writer, files: SegmentFiles, indexes: Indexes, builder: Builder
    ) -> None:
        self._reads = reads
        self._writer = writer
        self._files = files
        self._indexes = indexes
        self._builder = builder
        self._due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._waiting: set[int] = set()
        self._unseen: Counter[int] = Counter()  # rows written to cold collections
        self._quiet: dict[int, float] = {}  # when nothing will have been written to them for a while
        self._anew: set[int] = set()  # collections of which all is to be built anew
        self._questions: dict[int, Float32] = {}
        self._closing = False
        self._lister = Lister()
        self._thread = LastingThread("likewise-segments", self._main)

    def follow(self, change: Change) -> None:
        """Bring the index up to date with a committed write, and have a segment built if one is due."""
        index = self._indexes.peek(change.collection_id)
        if index is not None and index.snapshot is not None:
            wanted = index.apply(change)
            self._lister.look(index)
        else:
            if index is not None:
                index.apply(change)
            self._unseen[change.collection_id] += len(change.vids)
            if self._unseen[change.collection_id] > policy.SHOWN_TO_ALL:
                self._quiet[change.collection_id] = time.monotonic() + QUIET_S
                if self._due.empty():  # a thread that builds for long must not find a heap of them
                    self._due.put(None)
            wanted = False
        if wanted:
            self.request(change.collection_id)

    def request(self, collection_id: int) -> None:
        """Have a segment built soon, in the background."""
        if collection_id not in self._waiting:
            self._waiting.add(collection_id)
            self._due.put(collection_id)

    def retune(self, collection_id: int, queries: Float32) -> None:
        """Build the approximate segments anew, so that they reach the target on these queries, searchable."""
        self._questions[collection_id] = queries
        self.request_anew(collection_id)

    def request_anew(self, collection_id: int) -> None:
        """Have everything built anew soon, in the background."""
        self._anew.add(collection_id)
        self.request(collection_id)

    def resume(self) -> None:
        """Take up what was not built when the store was closed, or crashed."""
        with self._reads.transaction() as db:
            found = db.execute(
                "SELECT collections.id FROM collections LEFT JOIN segments ON collection_id = collections.id"
                " GROUP BY collections.id HAVING item_count - coalesce(sum(row_count), 0) > ?",
                (policy.SHOWN_TO_ALL,),
            ).fetchall()
        for (collection_id,) in found:
            self._quiet[collection_id] = time.monotonic() + QUIET_S
        self._due.put(None)

    def close(self) -> None:
        """Stop; what is being built is given up."""
        self._closing = True
        self._builder.close()
        self._due.put(None)
        self._lister.close()
        self._thread.join()

    def _main(self) -> None:
        while not self._closing:
            for collection_id in self._next():
                self._try(collection_id)

    def _next(self) -> list[int]:
        """Wait for collections that want a segment; none now and then."""
        try:
            asked = self._due.get(timeout=QUIET_S if self._quiet else None)
        except queue.Empty:
            asked = None
        now = time.monotonic()
        quiet = [collection_id for collection_id, until in dict(self._quiet).items() if until <= now]
        for collection_id in quiet:
            self._quiet.pop(collection_id, None)
        return quiet if asked is None else [asked, *quiet]

    def _try(self, collection_id: int) -> None:
        self._waiting.discard(collection_id)
        anew = collection_id in self._anew
        self._anew.discard(collection_id)
        try:
            self.checkpoint(collection_id, always=anew)
        except NotFound:  # the collection is no more
            for known in (self._unseen, self._quiet, self._questions):
                known.pop(collection_id, None)
        except Unavailable as error:  # the store is no more, the build was overtaken, or the disk failed
            logger.info("A segment was not built: %s", error)
        except Exception:
            # Nothing is lost: the rows are in the database, and the next write asks again.
            logger.exception("A segment could not be built; it will be tried again")

    def snapshot(self, collection: Collection) -> Snapshot | None:
        """Return the rows of a collection as they are in memory; None while it is cold."""
        index = self._indexes.peek(collection.id)
        return index.snapshot if index is not None else None

    def opened(self, collection: Collection) -> CollectionIndex:
        """Return the index of a collection, loaded if it was cold."""
        index = self._indexes.of(collection)
        if index.snapshot is None:
            with index.loading:
                if index.snapshot is None:
                    self._load(collection.id, index)
        return index

    def _load(self, collection_id: int, index: CollectionIndex) -> None:
        parts, damaged = self._usable(collection_id)
        after = max((row.meta.last_vid for row in segments.chained(_rows_of(parts))), default=0)
        index.begin_load()
        try:
            with self._reads.transaction() as db:
                collection = catalog.find_id(db, collection_id)
                alive = np.array(vectors.stored_vids(db, collection_id), np.int64)
                missing = _outside(alive, parts)
                many = int((missing > after).sum()) > LOAD_MOST
                if not many:
                    vids, rows = read_rows(db, collection, missing)
                    index.finish_load(collection.seq, parts, alive, vids, rows)
        except BaseException:
            index.forget()
            raise
        if many:
            index.forget()
            self._bridge(collection_id, index, after, missing)
            return
        self._unseen.pop(collection_id, None)
        snapshot = index.snapshot
        self._lister.look(index)
        if damaged or (snapshot is not None and policy.due(snapshot)):
            self.request(collection_id)
        for part in parts:
            self._check_behind(collection_id, part)

    def _bridge(self, collection_id: int, index: CollectionIndex, after: int, missing: Int64) -> None:
        """Put rows that are too many for memory into a flat segment, then load; a better one follows behind."""
        self._builder.cancel(collection_id)  # it would come too late
        plan = policy.Plan(after, len(missing), FLAT)
        self._publish(collection_id, self._builder.build(collection_id, plan, policy.TARGET, []), None)
        self._load(collection_id, index)
        self.request_anew(collection_id)

    def _usable(self, collection_id: int) -> tuple[list[Part], bool]:
        """Return the segments that can be used, and whether any could not; those are set aside."""
        with self._reads.transaction() as db:
            collection = catalog.find_id(db, collection_id)
            rows = segments.of_collection(db, collection_id)
        parts = []
        for row in rows:
            try:
                parts.append(self._files.load(row, collection.dim))
            except DamagedSegment as error:
                self._set_aside(collection, row, error)
        return [part for part in parts if len(part)], len(parts) < len(rows)

    def _set_aside(self, collection: Collection, row: SegmentRow, error: DamagedSegment) -> None:
        logger.error("Collection %r: %s; it is rebuilt from the database", collection.name, error)
        try:
            self._files.quarantine(row.file)
            self._writer.call(lambda db: segments.forget(db, row.id))
        except (OSError, LikewiseError):  # searches do without it on a full disk too; the next start finds it bad again
            logger.exception("A bad segment could not be set aside")

    def _check_behind(self, collection_id: int, part: Part) -> None:
        """Check a large segment's rows while they are in use already; set it aside if they are damaged."""
        row = part.segment.row if part.segment else None
        if row is None or not self._files.checks_behind(row):
            return

        def check() -> None:
            try:
                self._files.verify(row)
            except DamagedSegment as error:
                with self._reads.transaction() as db:
                    collection = catalog.find_id(db, collection_id)
                    still = row.id in {each.id for each in segments.of_collection(db, collection_id)}
                if still:  # and not replaced and removed meanwhile
                    self._set_aside(collection, row, error)
                    self._indexes.of(collection).forget()

        threading.Thread(target=check, name="likewise-verify", daemon=True).start()

    def checkpoint(self, collection_id: int, *, always: bool = False) -> bool:
        """Build a segment unless all rows are in segments that are in order; return whether one was built.

        With `always`, of all rows. Raises NotFound, ResourceExhausted on a full disk, and Internal.
        """
        try:
            with self._reads.transaction() as db:
                collection = catalog.find_id(db, collection_id)
            index = self._indexes.of(collection)
            with index.building:
                return self._checkpoint(collection_id, index, always=always)
        except LikewiseError:
            raise
        except (OSError, RuntimeError) as error:  # FAISS reports a failed write as a RuntimeError
            ours = translated(error)
            if isinstance(ours, LikewiseError):
                raise ours from error
            raise Internal(f"A segment could not be built: {error}") from error

    def _checkpoint(self, collection_id: int, index: CollectionIndex, *, always: bool) -> bool:
        with self._reads.transaction() as db:
            collection = catalog.find_id(db, collection_id)
            rows = segments.of_collection(db, collection_id)
            plan = policy.whole(collection) if always else self._plan(db, collection, rows, index.snapshot)
        if plan is None:
            return False
        questions = self._questions.pop(collection_id, np.empty((0, collection.dim), np.float32))
        written = self._builder.build(collection_id, plan, policy.TARGET, questions.tolist())
        with index.loading:
            replaced = self._publish(collection_id, written, [row.id for row in rows])
            if replaced is None:
                return False
            self._unseen.pop(collection_id, None)
            if index.snapshot is not None:
                index.swap(self._just_written(collection, written.file), replaced)
                self._lister.look(index)
            for file in replaced:
                self._files.remove(file)
        failpoints.hit("segment.after_collect")
        return True

    def _just_written(self, collection: Collection, file: str) -> Part:
        """Map the segment that was published a moment ago. Raises NotFound where the collection was deleted since."""
        with self._reads.transaction() as db:
            catalog.find_id(db, collection.id)
            row = next(row for row in segments.of_collection(db, collection.id) if row.file == file)
        try:
            return self._files.load(row, collection.dim)
        except DamagedSegment:
            with self._reads.transaction() as db:
                catalog.find_id(db, collection.id)  # its files go with it
            raise

    def _plan(
        self, db: sqlite3.Connection, collection: Collection, rows: list[SegmentRow], snapshot: Snapshot | None
    ) -> policy.Plan | None:
        """Return what to build, None where all is in order. Without a snapshot nobody knows of dead rows."""
        good = segments.chained(rows)
        outside = len(vectors.stored_vids(db, collection.id, good[-1].meta.last_vid if good else 0))
        parts = snapshot.segments if snapshot is not None else ()
        dead = {part.segment.row.id: part.dead for part in parts if part.segment}
        sizes = [policy.Size(row.row_count, dead.get(row.id, 0), row.meta.last_vid) for row in good]
        if not outside and len(good) == len(rows) and not any(policy.rotten(size) for size in sizes):
            return None
        return policy.plan(collection, sizes, outside)

    def _publish(self, collection_id: int, written: segments.Written, only_if: list[int] | None) -> list[str] | None:
        """Make a file count; return the files that it replaces, None where it came too late and is removed."""
        replaced = self._writer.call(lambda db: segments.publish(db, collection_id, written, only_if))
        failpoints.hit("segment.after_row")
        if replaced is None:
            self._files.remove(written.file)
        return replaced

    def rebuild(self, collection_id: int) -> None:
        """Throw away what is derived of a collection and make it anew from the database."""
        index = self._indexes.peek(collection_id)
        if index is not None:
            index.forget()
        with self._reads.transaction() as db:
            rows = segments.of_collection(db, collection_id)
        for row in rows:
            self._files.quarantine(row.file)
        self.checkpoint(collection_id, always=True)

    def dirty(self) -> list[int]:
        """Return the collections with writes that are in no segment."""
        with self._reads.transaction() as db:
            found = db.execute(
                "SELECT collections.id FROM collections LEFT JOIN segments ON collection_id = collections.id"
                " GROUP BY collections.id HAVING coalesce(max(up_to_seq), 0) < seq"
            )
            return [collection_id for (collection_id,) in found]


def read_rows(db: sqlite3.Connection, collection: Collection, wanted: Int64) -> tuple[Int64, Float32]:
    """Return vids `(n,)` and vectors `(n, dim)` of those wanted; damaged ones are logged, not returned."""
    all_vids, all_rows = [np.empty(0, np.int64)], [np.empty((0, collection.dim), np.float32)]
    for vids, rows, damaged in vectors.stored_rows(db, wanted.tolist(), collection.dim):
        all_vids.append(vids)
        all_rows.append(rows)
        if damaged:
            vectors.log_damaged(collection.name, len(damaged))
    return np.concatenate(all_vids), np.concatenate(all_rows)


def _outside(alive: Int64, parts: list[Part]) -> Int64:
    """Return the vids that are in no part."""
    inside = np.zeros(len(alive), np.bool_)
    for part in parts:
        at = np.minimum(np.searchsorted(alive, part.vids), max(0, len(alive) - 1))
        if len(alive):
            inside[at[alive[at] == part.vids]] = True
    return alive[~inside]


def _rows_of(parts: list[Part]) -> list[SegmentRow]:
    return [part.segment.row for part in parts if part.segment]
