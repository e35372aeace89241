"""Derived things are loaded, written and replaced here; each can be lost at any moment and made again.

A checkpoint is: read the rows in one transaction → write a file aside → name it in `segments` (this commit is
the moment it counts) → use it in memory → remove the file before it.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import Internal, LikewiseError
from likewise_server.store import catalog, failpoints, segments, vectors
from likewise_server.store.schema import ReadPool, translated
from likewise_server.store.segments import DamagedSegment, Segment, SegmentFiles, SegmentRow

if TYPE_CHECKING:
    import sqlite3

    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import CollectionIndex, Indexes
    from likewise_server.store.types import Float32, Int64
    from likewise_server.store.writer import Writer

logger = logging.getLogger(__name__)


class Maintenance:
    """Loads indexes, and writes segments in a thread of its own when they are due."""

    def __init__(self, reads: ReadPool, writer: Writer, files: SegmentFiles, indexes: Indexes) -> None:
        self._reads = reads
        self._writer = writer
        self._files = files
        self._indexes = indexes
        self._due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._waiting: set[int] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="likewise-checkpoint", daemon=True)
        self._thread.start()

    def request(self, collection_id: int) -> None:
        """Have a checkpoint written soon, in the background."""
        if collection_id not in self._waiting:
            self._waiting.add(collection_id)
            self._due.put(collection_id)

    def close(self) -> None:
        """Finish the checkpoint under way, leave the others, and stop."""
        self._closing = True
        self._due.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (collection_id := self._due.get()) is not None:
            if self._closing:
                continue
            self._waiting.discard(collection_id)
            try:
                self.checkpoint(collection_id)
            except Exception:
                # Nothing is lost: the rows are in the database, and the next write asks again.
                logger.exception("A checkpoint failed; it will be tried again")

    def opened(self, collection: Collection) -> CollectionIndex:
        """Return the index of a collection, loaded if it was cold."""
        index = self._indexes.of(collection.id, collection.dim, collection.metric)
        if index.snapshot is None:
            with index.building:
                if index.snapshot is None:
                    self._load(collection.id, index)
        return index

    def _load(self, collection_id: int, index: CollectionIndex) -> None:
        index.begin_load()
        try:
            with self._reads.transaction() as db:
                collection = catalog.find_id(db, collection_id)
                row = segments.current(db, collection_id)
                segment = self._load_segment(row, collection) if row else None
                after = int(segment.vids[-1]) if segment is not None and len(segment.vids) else 0
                alive = np.array(vectors.stored_vids(db, collection_id), np.int64)
                vids, rows = read_rows(db, collection, after)
            index.finish_load(collection.seq, segment, alive, vids, rows)
        except BaseException:
            index.forget()
            raise
        if row is not None and segment is None:
            self._writer.call(lambda db: segments.forget(db, row.id))
        snapshot = index.snapshot
        if (row is not None and segment is None) or (snapshot is not None and snapshot.wants_checkpoint):
            self.request(collection_id)

    def _load_segment(self, row: SegmentRow, collection: Collection) -> Segment | None:
        try:
            return self._files.load(row, collection.dim, collection.metric)
        except DamagedSegment as error:
            logger.error("Collection %r: %s; it is rebuilt from the database", collection.name, error)  # noqa: TRY400  # the reason is the message
            self._files.quarantine(row.file)
            return None

    def checkpoint(self, collection_id: int, *, always: bool = False) -> bool:
        """Write a segment of all rows unless there is a current one; return whether one was written.

        Raises NotFound, ResourceExhausted on a full disk, and Internal.
        """
        try:
            with self._reads.transaction() as db:
                collection = catalog.find_id(db, collection_id)
            index = self._indexes.of(collection.id, collection.dim, collection.metric)
            with index.building:
                return self._checkpoint(collection_id, index, always=always)
        except LikewiseError:
            raise
        except (OSError, RuntimeError) as error:  # FAISS reports a failed write as a RuntimeError
            ours = translated(error)
            if isinstance(ours, LikewiseError):
                raise ours from error
            raise Internal(f"A segment could not be written: {error}") from error

    def _checkpoint(self, collection_id: int, index: CollectionIndex, *, always: bool) -> bool:
        with self._reads.transaction() as db:
            collection = catalog.find_id(db, collection_id)
            row = segments.current(db, collection_id)
            if row is not None and row.up_to_seq == collection.seq and not always:
                return False
            vids, rows = read_rows(db, collection, 0)
        segment = segments.build(vids, vectors.searchable(rows, collection.metric), collection.metric)
        written = self._files.write(collection_id, segment)
        replaced = self._writer.call(lambda db: segments.replace(db, collection_id, written, len(vids), collection.seq))
        failpoints.hit("segment.after_row")
        if replaced is None:
            self._files.remove(written.file)
            return False
        index.swap(segment)
        for file in replaced:
            self._files.remove(file)
        failpoints.hit("segment.after_collect")
        return True

    def rebuild(self, collection_id: int) -> None:
        """Throw away what is derived of a collection and make it anew from the database."""
        index = self._indexes.peek(collection_id)
        if index is not None:
            index.forget()
        with self._reads.transaction() as db:
            row = segments.current(db, collection_id)
        if row is not None:
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


def read_rows(db: sqlite3.Connection, collection: Collection, after_vid: int) -> tuple[Int64, Float32]:
    """Return vids `(n,)` and vectors `(n, dim)`, past `after_vid`; damaged ones are logged, not returned."""
    wanted = vectors.stored_vids(db, collection.id, after_vid)
    all_vids, all_rows = [np.empty(0, np.int64)], [np.empty((0, collection.dim), np.float32)]
    for vids, rows, damaged in vectors.stored_rows(db, wanted, collection.dim):
        all_vids.append(vids)
        all_rows.append(rows)
        if damaged:
            logger.error(
                "Collection %r: %d damaged vectors are left out of searches; run fsck",
                collection.name,
                len(damaged),
            )
    return np.concatenate(all_vids), np.concatenate(all_rows)
