"""The rows of one collection in memory: a segment, a growing delta, and which of them are alive.

Readers take the snapshot of the moment, which never changes, and need no lock. Writes make the next snapshot
and swap it in by one assignment. A collection is cold until its first search.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store.exact import Part
from likewise_server.store.vectors import searchable

if TYPE_CHECKING:
    from likewise_server.store.items import Change
    from likewise_server.store.segments import Segment
    from likewise_server.store.types import Bool, Float32, Int64, Metric

MIN_DELTA = 10_000
DELTA_SHARE = 0.25
MIN_DEAD = 1_000
DEAD_SHARE = 0.15

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows after write `seq`; the delta's vids are all larger than the segment's."""

    seq: int
    segment: Part
    delta: Part

    @property
    def parts(self) -> tuple[Part, Part]:
        """Both parts, in order of vid."""
        return self.segment, self.delta

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the delta or the dead rows have grown large enough to be written off."""
        rows = len(self.segment.vids)
        dead = sum(int(np.count_nonzero(~part.alive)) for part in self.parts)
        return len(self.delta.vids) > max(MIN_DELTA, DELTA_SHARE * rows) or dead > max(
            MIN_DEAD, DEAD_SHARE * (rows + len(self.delta.vids))
        )


class _Buffer:
    """Grows by doubling. What was handed out is never written again, so readers need no lock."""

    def __init__(self, vids: Int64, rows: Float32) -> None:
        self._vids, self._rows, self._length = vids, rows, len(vids)

    def append(self, vids: Int64, rows: Float32) -> tuple[Int64, Float32]:
        end = self._length + len(vids)
        if end > len(self._vids):
            capacity = max(end, 2 * len(self._vids), 64)
            grown_vids = np.empty(capacity, np.int64)
            grown_rows = np.empty((capacity, self._rows.shape[1]), np.float32)
            grown_vids[: self._length] = self._vids[: self._length]
            grown_rows[: self._length] = self._rows[: self._length]
            self._vids, self._rows = grown_vids, grown_rows
        self._vids[self._length : end] = vids
        self._rows[self._length : end] = rows
        self._length = end
        return self._vids[:end], self._rows[:end]


class CollectionIndex:
    """Holds the snapshot of one collection and brings it up to date."""

    def __init__(self, dim: int, metric: Metric) -> None:
        self.dim = dim
        self.metric = metric
        self.building = threading.Lock()
        """Held while rows are loaded or a segment is written: one of these at a time."""
        self._lock = threading.Lock()  # held for moments; never while anything is read or written
        self._snapshot: Snapshot | None = None
        self._buffer: _Buffer | None = None
        self._loading: list[Change] | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """The rows as of the last write; None while cold."""
        return self._snapshot

    def begin_load(self) -> None:
        """Keep the changes from here on, which the load may or may not see."""
        with self._lock:
            self._loading = []

    def finish_load(self, seq: int, segment: Segment | None, alive: Int64, vids: Int64, rows: Float32) -> None:
        """Publish what was read in one transaction at `seq`, and the changes since.

        `alive` are all vids of the collection; `vids` `(n,)` and `rows` `(n, dim)`, as stored, those that
        are not in the segment.
        """
        part = self._part_of(segment)
        part = replace(part, alive=part.mask_of(alive))
        ready = searchable(rows, self.metric)
        delta = Part(vids, ready, np.ones(len(vids), np.bool_), _squares(ready))
        with self._lock:
            self._buffer = _Buffer(vids, ready)
            self._snapshot = Snapshot(seq, part, delta)
            pending, self._loading = self._loading or [], None
            for change in pending:
                self._advance(change)

    def forget(self) -> None:
        """Become cold: the next search loads again."""
        with self._lock:
            self._snapshot = self._buffer = self._loading = None

    def apply(self, change: Change) -> bool:
        """Publish the rows after a committed write; return whether a checkpoint is due. Never raises."""
        with self._lock:
            try:
                if self._loading is not None:
                    self._loading.append(change)
                elif self._snapshot is not None:
                    self._advance(change)
                    return self._snapshot.wants_checkpoint
            except Exception:
                # The write is on disk and the index is derived: drop it rather than serve it stale.
                logger.exception("The index of a collection could not follow a write; it will be loaded anew")
                self._snapshot = self._buffer = self._loading = None
        return False

    def _advance(self, change: Change) -> None:
        old, buffer = self._snapshot, self._buffer
        if old is None or buffer is None or change.seq <= old.seq:
            return
        segment, delta = old.segment, old.delta
        if len(change.vids):
            ready = searchable(change.rows, self.metric)
            vids, rows = buffer.append(change.vids, ready)
            alive = np.concatenate([delta.alive, np.ones(len(ready), np.bool_)])
            delta = Part(vids, rows, alive, np.concatenate([delta.squares, _squares(ready)]))
        self._snapshot = Snapshot(change.seq, _without(segment, change.removed), _without(delta, change.removed))

    def swap(self, segment: Segment) -> None:
        """Put a newer segment in the place of the old one and of the delta's rows that it took in."""
        part = self._part_of(segment)
        with self._lock:
            old = self._snapshot
            if old is None:
                return
            alive = np.concatenate([p.vids[p.alive] for p in old.parts])
            last = part.vids[-1] if len(part.vids) else 0
            # Rows past the segment's last were written after its build began; older ones are in it or dead.
            newer = (old.delta.vids > last) & old.delta.alive
            vids, rows = old.delta.vids[newer], old.delta.rows[newer]
            self._buffer = _Buffer(vids, rows)
            delta = Part(vids, rows, np.ones(len(vids), np.bool_), _squares(rows))
            self._snapshot = Snapshot(old.seq, replace(part, alive=part.mask_of(alive)), delta)

    def _part_of(self, segment: Segment | None) -> Part:
        if segment is None:
            empty = np.empty((0, self.dim), np.float32)
            return Part(np.empty(0, np.int64), empty, np.empty(0, np.bool_), np.empty(0, np.float32))
        alive = np.ones(len(segment.vids), np.bool_)
        return Part(segment.vids, segment.rows, alive, _squares(segment.rows), segment.flat)


class Indexes:
    """The indexes of all collections, by collection id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexes: dict[int, CollectionIndex] = {}

    def of(self, collection_id: int, dim: int, metric: Metric) -> CollectionIndex:
        """Return the index of a collection, a cold one at first."""
        with self._lock:
            return self._indexes.setdefault(collection_id, CollectionIndex(dim, metric))

    def peek(self, collection_id: int) -> CollectionIndex | None:
        """Return the index of a collection if there was a search in it."""
        return self._indexes.get(collection_id)

    def drop(self, collection_id: int) -> None:
        """Forget a deleted collection."""
        with self._lock:
            self._indexes.pop(collection_id, None)


def _without(part: Part, removed: Int64) -> Part:
    gone: Bool = part.mask_of(removed)
    return replace(part, alive=part.alive & ~gone) if gone.any() else part


def _squares(rows: Float32) -> Float32:
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)
