"""Searches under a filter, planned by how many rows it lets through.

Many: search without it, deeper, and drop what does not match; the first k that do are the answer. Few, or asked for
often: ask SQLite for all that match, keep that, and look them up there, or compare them one by one. That is done too
for a query that has none of those that match near it: how to find rows was measured on near ones, and the rows of a
label lie together. Either way an answer has as many hits as match, up to k.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import finding, items
from likewise_server.store.finding import Allowed, Found

if TYPE_CHECKING:
    import sqlite3

    from likewise_server.store.catalog import Collection
    from likewise_server.store.filter_sql import Condition
    from likewise_server.store.finding import Nearest
    from likewise_server.store.index import Snapshot
    from likewise_server.store.types import Float32, Int64

SMALL = 20_000  # rows of a collection in which SQLite is always asked for all that match
SAMPLE = 400  # rows by which the share that matches is judged
LEAST_MATCHING = 8  # of the sample, for searching deeper to be worth while
DEEPEST = 1_000  # hits asked for without the filter: up to there recall was measured
ROOM = 1.5  # times as many as should do
CHECKED_AT_ONCE = 10_000
KEPT_BYTES = 64 * 2**20  # of masks of filters used lately
SEED = 7
DEEPER_S = 20e-6  # of searching deeper, for each hit and query
COPIED_S = 1e-6  # of collecting one listed row
COMPARED_S = 2e-8  # of comparing it, for each query
LISTING_S = 1.2e-6  # of asking SQLite for all that match, for each of them
REMEMBERED = 256  # filters


class Filtering:
    """Finds the nearest rows that match, and remembers which rows filters used lately let through."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Allowed] = OrderedDict()
        self._spent: OrderedDict[tuple[object, ...], float] = OrderedDict()  # about, on searching deeper

    def nearest(
        self,
        db: sqlite3.Connection,
        collection: Collection,
        snapshot: Snapshot,
        queries: Float32,
        k: int,
        where: str,
        condition: Condition,
        excluded: Int64 | None,
    ) -> tuple[Found, int | None]:
        """Return what was found, and how many rows match, None where that was not counted."""
        if excluded is not None and len(excluded) and k + len(excluded) <= DEEPEST:
            deeper = k + len(excluded)
            found, matching = self._matching_nearest(db, collection, snapshot, queries, deeper, where, condition)
            return _without(found, excluded, k), matching
        found, matching = self._matching_nearest(db, collection, snapshot, queries, k, where, condition, excluded)
        return found, matching

    def _matching_nearest(
        self,
        db: sqlite3.Connection,
        collection: Collection,
        snapshot: Snapshot,
        queries: Float32,
        k: int,
        where: str,
        condition: Condition,
        excluded: Int64 | None = None,
    ) -> tuple[Found, int | None]:
        if excluded is not None and len(excluded):
            allowed = self._allowed(db, collection, snapshot, where, condition)
            masks = [mask & ~part.mask_of(excluded) for part, mask in zip(snapshot.parts, allowed.masks, strict=True)]
            found = finding.nearest(snapshot, queries, k, collection.metric, Allowed.of(masks))
            return found, sum(allowed.counts) if condition[0] else None
        if not condition[0]:
            return finding.nearest(snapshot, queries, k, collection.metric), None
        key = _key(collection, snapshot, where)
        if snapshot.alive > SMALL and key not in self._kept:
            share = _share(db, collection, snapshot, condition)
            if share and self._worth_while(key, len(queries) * _depth(k, share), share * snapshot.alive):
                deeper = _by_searching_deeper(db, collection, snapshot, queries, k, share, condition)
                if deeper is not None:
                    return deeper, None
        allowed = self._allowed(db, collection, snapshot, where, condition)
        return _among(allowed, collection, snapshot, queries, k), sum(allowed.counts)

    def _worth_while(self, key: tuple[object, ...], hits: int, matching: float) -> bool:
        """Tell whether to search deeper for so many hits once more, rather than list all rows that match.

        Once searching deeper has cost as much as the list would have, the list is made: that never costs more than
        twice the better of both.
        """
        with self._lock:
            spent = self._spent.pop(key, 0.0) + hits * DEEPER_S
            self._spent[key] = spent
            if len(self._spent) > REMEMBERED:
                self._spent.popitem(last=False)
        return spent <= matching * LISTING_S

    def _allowed(
        self, db: sqlite3.Connection, collection: Collection, snapshot: Snapshot, where: str, condition: Condition
    ) -> Allowed:
        """Return the rows that match, from the database or from the last time that the filter was used."""
        if not condition[0]:
            return Allowed.of([part.alive for part in snapshot.parts])
        key = _key(collection, snapshot, where)
        with self._lock:
            allowed = self._kept.get(key)
            if allowed is not None:
                self._kept.move_to_end(key)
                return allowed
        matching = np.sort(items.matching(db, collection.id, condition))
        allowed = Allowed.of([part.mask_of(matching) & part.alive for part in snapshot.parts], matching)
        with self._lock:
            self._kept[key] = allowed
            while sum(map(_bytes_of, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return allowed


def _bytes_of(allowed: Allowed) -> int:
    return sum(2 * len(mask) for mask in allowed.masks) + (0 if allowed.vids is None else allowed.vids.nbytes)


def _key(collection: Collection, snapshot: Snapshot, where: str) -> tuple[object, ...]:
    files = tuple(part.segment.row.file for part in snapshot.segments if part.segment)
    return collection.id, snapshot.seq, files, tuple(map(len, snapshot.parts)), where


def _depth(k: int, share: float) -> int:
    """Return how many hits to look for without the filter, so that `k` of them match."""
    return round(ROOM * k / share) + k


def _among(allowed: Allowed, collection: Collection, snapshot: Snapshot, queries: Float32, k: int) -> Found:
    """Return the nearest of the rows allowed, all of which are known."""
    count, metric = sum(allowed.counts), collection.metric
    approximate = any(part.approximation for part in snapshot.parts)
    depth = _depth(k, count / snapshot.alive) if count and approximate else 0
    asked = len(queries)
    if count <= finding.FEW and asked * depth * DEEPER_S > count * (COPIED_S + asked * COMPARED_S):
        depth = 0
    if allowed.vids is None or not 0 < depth <= DEEPEST:
        return finding.nearest(snapshot, queries, k, metric, allowed)
    found = finding.nearest(snapshot, queries, depth, metric)
    best = [_only(each, allowed.vids) for each in found.nearest]
    far = np.array([len(vids) < k for vids, _ in best], np.bool_)
    scanned = found.scanned
    if far.any():
        compared = finding.nearest(snapshot, queries[far], k, metric, allowed, compare_all=True)
        scanned += compared.scanned
        for at, each in zip(np.flatnonzero(far).tolist(), compared.nearest, strict=True):
            best[at] = each
    return Found([(vids[:k], scores[:k]) for vids, scores in best], found.recall, scanned)


def _by_searching_deeper(
    db: sqlite3.Connection,
    collection: Collection,
    snapshot: Snapshot,
    queries: Float32,
    k: int,
    share: float,
    condition: Condition,
) -> Found | None:
    """Return the nearest rows that match, by checking the nearest of all; None where too few do."""
    depth = _depth(k, share)
    while depth <= DEEPEST:
        found = finding.nearest(snapshot, queries, depth, collection.metric)
        good = _matching_among(
            db,
            collection,
            np.unique(np.concatenate([np.empty(0, np.int64), *(vids for vids, _ in found.nearest)])),
            condition,
        )
        matching = [_only(each, good) for each in found.nearest]
        if all(len(vids) >= k for vids, _ in matching) or snapshot.alive <= depth:
            return Found([(vids[:k], scores[:k]) for vids, scores in matching], found.recall, found.scanned)
        depth *= 4
    return None


def _share(db: sqlite3.Connection, collection: Collection, snapshot: Snapshot, condition: Condition) -> float:
    """Return about which share of the rows matches, 0 where it is too small to go by a sample."""
    rng = np.random.default_rng(SEED)
    parts = [part for part in snapshot.parts if len(part)]
    shares = np.array([len(part) - part.dead for part in parts], float) / max(1, snapshot.alive)
    sample = [
        part.vids[rng.integers(0, len(part), round(SAMPLE * share) + 1)]
        for part, share in zip(parts, shares, strict=True)
    ]
    vids = np.unique(np.concatenate(sample))
    matching = len(items.matching_among(db, collection.id, condition, vids))
    return matching / len(vids) if matching >= LEAST_MATCHING else 0.0


def _matching_among(db: sqlite3.Connection, collection: Collection, vids: Int64, condition: Condition) -> Int64:
    found = [
        items.matching_among(db, collection.id, condition, vids[start : start + CHECKED_AT_ONCE])
        for start in range(0, len(vids), CHECKED_AT_ONCE)
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def _only(found: Nearest, good: Int64) -> Nearest:
    vids, scores = found
    if not len(good):
        return vids[:0], scores[:0]
    at = np.minimum(np.searchsorted(good, vids), len(good) - 1)
    there = good[at] == vids
    return vids[there], scores[there]


def _without(found: Found, excluded: Int64, k: int) -> Found:
    kept = [~np.isin(vids, excluded) for vids, _ in found.nearest]
    best = [(vids[keep][:k], scores[keep][:k]) for (vids, scores), keep in zip(found.nearest, kept, strict=True)]
    return Found(best, found.recall, found.scanned)
