"""One search: the filter, the nearest rows and their items, all of one moment."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import FailedPrecondition, InvalidArgument, Unavailable
from likewise_server.store import catalog, exact, items, vectors
from likewise_server.store.filter_sql import Condition, where_clause
from likewise_server.store.types import Float32, Hit, SearchResult

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import Snapshot
    from likewise_server.store.maintenance import Maintenance
    from likewise_server.store.schema import ReadPool

MAX_K = 10_000
PATIENCE_S = 10.0
PAUSE_S = 0.0002


class Searcher:
    """Answers searches from the snapshots of the indexes."""

    def __init__(self, reads: ReadPool, maintenance: Maintenance) -> None:
        self._reads = reads
        self._maintenance = maintenance

    def search(
        self,
        name: str,
        queries: Float32,
        k: int,
        *,
        where: str,
        exclude_ids: Sequence[str],
        fingerprint: str,
    ) -> SearchResult:
        """Find the `k` nearest items of each query, `(n, dim)`; see `Store.search`."""
        if not 1 <= k <= MAX_K:
            raise InvalidArgument(f"k is {k}; it must be 1 to {MAX_K}.")
        condition = where_clause(where)
        with self._moment(name) as (db, collection, snapshot):
            if fingerprint:
                check_fingerprint(collection, fingerprint, "queries")
            checked = vectors.checked_queries(queries, collection.dim, collection.metric)
            return _search(db, collection, snapshot, checked, k, condition, exclude_ids)

    @contextmanager
    def _moment(self, name: str) -> Iterator[tuple[sqlite3.Connection, Collection, Snapshot]]:
        """Lend a transaction and the snapshot of exactly what it sees.

        Between a commit and its coming into the index there is a moment when the two differ; wait it out.
        """
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            with self._reads.transaction() as db:
                collection = catalog.find(db, name)
            # The snapshot first: a transaction begun after it sees at least as much.
            snapshot = self._maintenance.opened(collection).snapshot
            with self._reads.transaction() as db:
                now = catalog.find(db, name)
                if snapshot is not None and (now.id, now.seq) == (collection.id, snapshot.seq):
                    yield db, now, snapshot
                    return
            time.sleep(PAUSE_S)
        raise Unavailable(f"The collection {name!r} is being written to too fast. Try again.", retry_after_s=1.0)


def _search(
    db: sqlite3.Connection,
    collection: Collection,
    snapshot: Snapshot,
    queries: Float32,
    k: int,
    condition: Condition,
    exclude_ids: Sequence[str],
) -> SearchResult:
    masks = [part.alive for part in snapshot.parts]
    filtered_count = None
    if condition[0]:
        matching = items.matching(db, collection.id, condition)
        filtered_count = len(matching)
        masks = [part.mask_of(matching) & mask for part, mask in zip(snapshot.parts, masks, strict=True)]
    if exclude_ids:
        excluded = items.matching(db, collection.id, ("", []), exclude_ids)
        masks = [mask & ~part.mask_of(excluded) for part, mask in zip(snapshot.parts, masks, strict=True)]
    found = exact.nearest(
        list(zip(snapshot.parts, masks, strict=True)),
        vectors.searchable(queries, collection.metric),
        k,
        collection.metric,
    )
    wanted = {int(vid) for vids, _ in found for vid in vids}
    rows = items.by_vid(db, collection, wanted)
    hits = [
        [Hit(rows[int(vid)], float(score)) for vid, score in zip(vids, scores, strict=True)] for vids, scores in found
    ]
    scanned = sum(int(np.count_nonzero(mask)) for mask in masks)
    return SearchResult(hits, exact=True, measured_recall=None, scanned=scanned, filtered_count=filtered_count)


def check_fingerprint(collection: Collection, fingerprint: str, what: str) -> None:
    """Raise FailedPrecondition, naming both, unless the fingerprint is the collection's."""
    if fingerprint != collection.fingerprint:
        raise FailedPrecondition(
            f"The {what} are of space {fingerprint!r}, the collection {collection.name!r} of"
            f" {collection.fingerprint!r}: they cannot be compared. Use the backbone"
            f" {collection.backbone or 'the collection was made with'!r}, or another collection."
        )
