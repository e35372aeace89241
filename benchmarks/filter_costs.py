"""What the ways to search under a filter cost: the figures behind store/filtering.py.

    python benchmarks/filter_costs.py [--rows N] [--dim D]

Made vectors in one collection with an approximate index: the seconds for each hit of a deeper search, for each row that
is compared one by one, alone and for each of 64 queries, and for each row that SQLite lists.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from likewise_server.store import NewItem, catalog, filtering, finding, items
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.filter_sql import where_clause
from likewise_server.store.filters import parse
from likewise_server.store.finding import Allowed
from searching.synthetic import world

NAME, INGESTED, SEED = "c", 1000, 3
QUERIES, ROUNDS, DEPTH, SHALLOW = 64, 15, 300, 10
COMPARED = 20_000  # rows that a filter lets through, at most a fifth of all
PATIENCE_S = 900.0


def main() -> None:
    """Print one line for each constant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    chosen = parser.parse_args()
    rng = np.random.default_rng(SEED)
    source = world(chosen.rows, chosen.dim, SEED)
    few = min(COMPARED, chosen.rows // 5)
    matching = np.zeros(chosen.rows, np.bool_)
    matching[rng.choice(chosen.rows, few, replace=False)] = True
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as store:
        store.create_collection(NAME, dim=chosen.dim, fingerprint="f")
        for start in range(0, chosen.rows, INGESTED):
            block, _ = source.draw(min(INGESTED, chosen.rows - start), rng)
            labels = np.where(matching[start : start + len(block)], "few", "many").tolist()
            new = [
                NewItem(str(start + n), row, label) for n, (row, label) in enumerate(zip(block, labels, strict=True))
            ]
            store.upsert(NAME, new, fingerprint="f")
        queries, _ = source.draw(QUERIES, rng)
        print(f"{chosen.rows} x {chosen.dim}, a filter that lets {few} through, in microseconds")
        for name, seconds, now in measured(store, queries, few):
            print(f"{name:24} {1e6 * seconds:8.3f}   {1e6 * now:8.3f} in store/filtering.py")


def measured(store: EmbeddedStore, queries: np.ndarray, few: int) -> list[tuple[str, float, float]]:
    """Return the constants' names, seconds measured and seconds assumed. Looks into the store: nobody else says."""
    store.checkpoint(NAME)
    ends = time.monotonic() + PATIENCE_S
    store.search(NAME, queries[:1], SHALLOW)
    while store.get_collection(NAME).state.building and time.monotonic() < ends:
        time.sleep(0.2)
    with store._reads.transaction() as db:  # noqa: SLF001
        collection = catalog.find(db, NAME)
        snapshot = store._maintenance.snapshot(collection)  # noqa: SLF001
        if snapshot is None:
            raise RuntimeError("the collection is not loaded")
        condition = where_clause(parse("label = 'few'"), collection.indexed)
        vids = np.sort(items.matching(db, collection.id, condition))
        listing = _seconds(lambda: items.matching(db, collection.id, condition)) / len(vids)
    allowed = Allowed.of([part.mask_of(vids) & part.alive for part in snapshot.parts], vids)

    def deeper(count: int) -> float:
        some = queries[:count]
        shallow, deep = (
            _seconds(lambda k=k: finding.nearest(snapshot, some, k, "cosine"))  # type: ignore[misc]  # binds it now
            for k in (SHALLOW, DEPTH)
        )
        return (deep - shallow) / (count * (DEPTH - SHALLOW))

    def compared(count: int) -> float:
        some = queries[:count]
        return _seconds(lambda: finding.nearest(snapshot, some, SHALLOW, "cosine", allowed, compare_all=True)) / few

    each = (compared(QUERIES) - compared(1)) / (QUERIES - 1)
    return [
        ("DEEPER_S, of one query", deeper(1), filtering.DEEPER_S),
        (f"DEEPER_S, of {QUERIES}", deeper(QUERIES), filtering.DEEPER_S),
        ("COPIED_S", compared(1) - each, filtering.COPIED_S),
        ("COMPARED_S", each, filtering.COMPARED_S),
        ("LISTING_S", listing, filtering.LISTING_S),
    ]


def _seconds(action: Callable[[], object]) -> float:
    action()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


if __name__ == "__main__":
    main()
