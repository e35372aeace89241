"""The rows of one collection in memory: segments, a growing delta, and which of them are alive.

Readers take the snapshot of the moment, which never changes, and need no lock. Writes make the next snapshot
and swap it in by one assignment. A collection is cold until its first search.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import listing, policy
from likewise_server.store.codes import Codes
from likewise_server.store.parts import Part, squares_of
from likewise_server.store.vectors import searchable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.items import Change
    from likewise_server.store.types import Float32, Int64, Metric, Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows after write `seq`: those of segments, oldest first, and those that are in none yet.

    Of the latter the first may be `listed` already; `delta` are those after them.
    """

    seq: int
    segments: tuple[Part, ...]
    delta: Part
    listed: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return *self.segments, *self.in_memory

    @property
    def in_memory(self) -> tuple[Part, ...]:
        """The parts that are in no segment."""
        return (self.delta,) if self.listed is None else (self.listed, self.delta)

    @property
    def alive(self) -> int:
        """How many rows are alive."""
        return sum(len(part) - part.dead for part in self.parts)

    @property
    def outside(self) -> int:
        """How many rows are alive and in no segment."""
        return sum(len(part) - part.dead for part in self.in_memory)


class _Buffer:
    """Grows by doubling. What was handed out is never written again, so readers need no lock."""

    def __init__(self, vids: Int64, rows: Float32) -> None:
        self._vids, self._rows, self._length = vids, rows, len(vids)

    def first(self, count: int) -> tuple[Int64, Float32]:
        """Return the first rows, in the place where they are now."""
        return self._vids[:count], self._rows[:count]

    def roomier(self) -> _Buffer | None:
        """Return a copy with twice the room if this is half full, None if it is not."""
        if 2 * self._length < len(self._vids):
            return None
        made = _Buffer(self._vids[: self._length], self._rows[: self._length])
        made._grow(2 * len(self._vids))
        return made

    def move_to(self, other: _Buffer) -> None:
        """Take the place of a copy that was made before, and is the roomier."""
        other.append(self._vids[other._length : self._length], self._rows[other._length : self._length])
        self._vids, self._rows = other._vids, other._rows

    def _grow(self, capacity: int) -> None:
        vids, rows = np.empty(capacity, np.int64), np.empty((capacity, self._rows.shape[1]), np.float32)
        vids[: self._length], rows[: self._length] = self._vids[: self._length], self._rows[: self._length]
        self._vids, self._rows = vids, rows

    def append(self, vids: Int64, rows: Float32) -> tuple[Int64, Float32]:
        end = self._length + len(vids)
        if end > len(self._vids):
            self._grow(max(end, 2 * len(self._vids), 64))
        self._vids[self._length : end] = vids
        self._rows[self._length : end] = rows
        self._length = end
        return self._vids[:end], self._rows[:end]


class CollectionIndex:
    """Holds the snapshot of one collection and brings it up to date."""

    def __init__(self, dim: int, metric: Metric, storage: Storage) -> None:
        self.dim = dim
        self.metric = metric
        self._storage = storage
        self.building = threading.Lock()
        """Held while a segment is built: one at a time."""
        self.loading = threading.Lock()
        """Held while rows are loaded, or what was built is put in their place."""
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

    def finish_load(self, seq: int, segments: Sequence[Part], alive: Int64, vids: Int64, rows: Float32) -> None:
        """Publish what was read in one transaction at `seq`, and the changes since.

        `alive` are all vids of the collection; `vids` `(n,)` and `rows` `(n, dim)`, as stored, those that
        are in no segment.
        """
        known = tuple(part.only(part.mask_of(alive)) for part in segments)
        ready = self._ready(rows)
        delta = Part(vids, ready, np.ones(len(vids), np.bool_), squares_of(ready), codes=Codes(self.dim))
        with self._lock:
            self._buffer = _Buffer(vids, ready)
            self._snapshot = Snapshot(seq, known, delta)
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
                    return policy.due(self._snapshot)
            except Exception:
                # The write is on disk and the index is derived: drop it rather than serve it stale.
                logger.exception("The index of a collection could not follow a write; it will be loaded anew")
                self._snapshot = self._buffer = self._loading = None
        return False

    def _advance(self, change: Change) -> None:
        old, buffer = self._snapshot, self._buffer
        if old is None or buffer is None or change.seq <= old.seq:
            return
        delta, listed = old.delta, old.listed
        if len(change.vids):
            ready, known = self._ready(change.rows), 0 if listed is None else len(listed)
            vids, rows = buffer.append(change.vids, ready)
            alive = np.concatenate([delta.alive, np.ones(len(ready), np.bool_)])
            squares = np.concatenate([delta.squares, squares_of(ready)])
            delta = Part(vids[known:], rows[known:], alive, squares, delta.dead, codes=delta.codes)
            if listed is not None:  # which would else keep the memory that a full buffer has left
                listed = replace(listed, vids=vids[:known], rows=rows[:known])
        self._snapshot = Snapshot(
            change.seq,
            tuple(part.without(change.removed) for part in old.segments),
            delta.without(change.removed),
            None if listed is None else listed.without(change.removed),
        )

    def _ready(self, rows: Float32) -> Float32:
        """Return rows as they are searched; rounded here already where segments will round them."""
        ready = searchable(rows, self.metric)
        return ready.astype(np.float16).astype(np.float32) if self._storage == "fp16" else ready

    def swap(self, segment: Part, replaced: Sequence[str]) -> None:
        """Put a new segment in the place of those in the files `replaced` and of the delta's rows that it took in."""
        with self._lock:
            old = self._snapshot
            if old is None:
                return
            alive = np.concatenate([part.vids[part.alive] for part in old.parts])
            kept = [part for part in old.segments if part.segment and part.segment.row.file not in replaced]
            kept.append(segment.only(segment.mask_of(alive)))
            listed, delta = old.listed, old.delta.only(old.delta.alive & ~old.delta.mask_of(segment.vids))
            if listed is not None:
                listed = listed.only(listed.alive & ~listed.mask_of(segment.vids))
            if listed is None or 2 * listed.dead > len(listed):
                delta = self._compact(self._joined(listed, delta))
                listed = None
            self._snapshot = Snapshot(old.seq, tuple(kept), delta, listed)

    def _compact(self, part: Part) -> Part:
        """Return the rows that are alive, in a buffer of their own."""
        left = np.flatnonzero(part.alive)
        vids, rows = part.vids[left], part.taken(left)
        self._buffer = _Buffer(vids, rows)
        codes = Codes(self.dim) if part.codes is None else part.codes.taken(left)
        return Part(vids, rows, np.ones(len(vids), np.bool_), part.squares[left], codes=codes)

    def list(self) -> bool:
        """Put the rows that are in no segment into lists; return whether there are any that do. Searches go on."""
        with self._lock:
            seen, buffer = self._snapshot, self._buffer
            outside = None if seen is None else self._joined(seen.listed, seen.delta)
        made = None if seen is None or outside is None else listing.listed(seen, outside, self.metric)
        if made is None or outside is None or buffer is None:
            return False
        roomier = buffer.roomier()  # now, rather than while a write holds up the searches
        with self._lock:
            old = self._snapshot
            if old is None or self._buffer is not buffer:  # other rows by now
                return True
            if roomier is not None:
                buffer.move_to(roomier)
            now, count = self._joined(old.listed, old.delta), len(outside)
            new = np.arange(count - (len(now) - len(old.delta)), len(old.delta))
            codes = Codes(self.dim) if old.delta.codes is None else old.delta.codes.taken(new)
            listed = replace(now.between(0, count), lists=made)
            self._snapshot = replace(old, listed=listed, delta=replace(now.between(count, len(now)), codes=codes))
        return True

    def _joined(self, listed: Part | None, delta: Part) -> Part:
        """Return the rows of both, which follow each other in the buffer."""
        if listed is None or self._buffer is None:
            return delta
        vids, rows = self._buffer.first(len(listed) + len(delta))
        alive = np.concatenate([listed.alive, delta.alive])
        squares = np.concatenate([listed.squares, delta.squares])
        return Part(vids, rows, alive, squares, listed.dead + delta.dead)


class Indexes:
    """The indexes of all collections, by collection id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexes: dict[int, CollectionIndex] = {}

    def of(self, collection: Collection) -> CollectionIndex:
        """Return the index of a collection, a cold one at first."""
        with self._lock:
            made = CollectionIndex(collection.dim, collection.metric, collection.storage)
            return self._indexes.setdefault(collection.id, made)

    def peek(self, collection_id: int) -> CollectionIndex | None:
        """Return the index of a collection if there was a search in it."""
        return self._indexes.get(collection_id)

    def drop(self, collection_id: int) -> None:
        """Forget a deleted collection."""
        with self._lock:
            self._indexes.pop(collection_id, None)
