"""One search: the filter, the nearest rows and their items, all of one moment."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable
from likewise_server.store import catalog, finding, items, vectors
from likewise_server.store.filter_sql import where_clause
from likewise_server.store.filtering import Filtering
from likewise_server.store.filters import parse
from likewise_server.store.types import Float32, Hit, Int64, Item, SearchResult

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.finding import Nearest
    from likewise_server.store.index import Snapshot
    from likewise_server.store.maintenance import Maintenance
    from likewise_server.store.schema import ReadPool
    from likewise_server.store.shadow import Shadow

MAX_K = 10_000
PATIENCE_S = 10.0
PAUSE_S = 0.0002


class Searcher:
    """Answers searches from the snapshots of the indexes."""

    def __init__(self, reads: ReadPool, maintenance: Maintenance, shadow: Shadow) -> None:
        self._reads = reads
        self._maintenance = maintenance
        self._shadow = shadow
        self._filtering = Filtering()

    def search(
        self,
        name: str,
        queries: Float32,
        k: int,
        *,
        where: str,
        exclude_ids: Sequence[str],
        fingerprint: str,
        min_score: float | None,
        bare: bool,
    ) -> SearchResult:
        """Find the `k` nearest items of each query, `(n, dim)`; see `Store.search`."""
        if not 1 <= k <= MAX_K:
            raise InvalidArgument(f"k is {k}; it must be 1 to {MAX_K}.")
        if min_score is not None and math.isnan(min_score):
            raise InvalidArgument("min_score is NaN; give a number.")
        tree = parse(where)
        with self._moment(name) as (db, collection, snapshot):
            if fingerprint:
                check_fingerprint(collection, fingerprint, "queries")
            checked = vectors.checked_queries(queries, collection.dim, collection.metric)
            ready = vectors.searchable(checked, collection.metric)
            excluded = items.matching(db, collection.id, ("", []), exclude_ids) if exclude_ids else None
            matching = None
            if tree is None and excluded is None:
                found = finding.nearest(snapshot, ready, k, collection.metric)
                if found.recall is not None:
                    self._shadow.offer(collection.id, snapshot, ready, k, collection.metric, found.nearest)
            else:
                condition = where_clause(tree, collection.indexed)
                found, matching = self._filtering.nearest(
                    db, collection, snapshot, ready, k, where, condition, excluded
                )
            best = found.nearest
            if min_score is not None:
                best = [(vids[scores >= min_score], scores[scores >= min_score]) for vids, scores in best]
            recall = found.recall
            if recall is not None:
                recall = min(recall, self._shadow.recall(collection.id) or 1.0)
            hits = _hits(db, snapshot, best, bare=bare)
            return SearchResult(hits, recall is None, recall, found.scanned, matching)

    @contextmanager
    def _moment(self, name: str) -> Iterator[tuple[sqlite3.Connection, Collection, Snapshot]]:
        """Lend a transaction and the snapshot of exactly what it sees.

        Between a commit and its coming into the index there is a moment when the two differ; wait it out.
        """
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            with self._reads.transaction() as db:
                collection = catalog.find(db, name)
                snapshot = self._maintenance.snapshot(collection)
                if snapshot is not None and snapshot.seq == collection.seq:
                    yield db, collection, snapshot
                    return
            began = time.monotonic()
            self._maintenance.opened(collection)
            give_up += time.monotonic() - began  # what it took to read a large collection is not its writers' fault
            time.sleep(PAUSE_S)
        raise Unavailable(f"The collection {name!r} is being written to too fast. Try again.", retry_after_s=1.0)


def _hits(db: sqlite3.Connection, snapshot: Snapshot, found: Sequence[Nearest], *, bare: bool) -> list[list[Hit]]:
    vids = np.unique(np.concatenate([np.empty(0, np.int64), *(vids for vids, _ in found)]))
    rows = _bare(db, snapshot, vids) if bare else items.by_vid(db, vids.tolist())
    if len(rows) < len(vids):
        raise Internal(f"{len(vids) - len(rows)} items are missing from the database. Run fsck, and restore a backup.")
    return [
        [Hit(rows[vid], score) for vid, score in zip(vids.tolist(), scores.tolist(), strict=True)]
        for vids, scores in found
    ]


def _bare(db: sqlite3.Connection, snapshot: Snapshot, vids: Int64) -> dict[int, Item]:
    """Return items with nothing but their ids: from the segments, which have them, or the database."""
    names: dict[int, str] = {}
    for part in snapshot.segments:
        if part.segment is not None:
            at = part.positions_of(vids)
            names.update(zip(part.vids[at].tolist(), part.segment.names.at(at), strict=True))
    if len(names) < len(vids):
        names |= items.ids_by_vid(db, [vid for vid in vids.tolist() if vid not in names])
    return {vid: Item(ext_id, None, {}, "", "", 0.0) for vid, ext_id in names.items()}


def check_fingerprint(collection: Collection, fingerprint: str, what: str) -> None:
    """Raise FailedPrecondition, naming both, unless the fingerprint is the collection's."""
    if fingerprint != collection.fingerprint:
        raise FailedPrecondition(
            f"The {what} are of space {fingerprint!r}, the collection {collection.name!r} of"
            f" {collection.fingerprint!r}: they cannot be compared. Use the backbone"
            f" {collection.backbone or 'the collection was made with'!r}, or another collection."
        )
