"""Items of a collection read within bounds: page by page, or a random sample of so many."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.errors import DeadlineExceeded
from likewise_server.store.types import Float32, Item, Store

PAGE = 512  # items with vectors: enough for a matrix product, few enough to stop soon
IDS = 4096  # items without
SEED = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Items and their vectors (n, dim) float32, none of them all zeros, drawn from `total`.

    `members` are those of the ids asked about that are among the total, drawn or not.
    """

    items: list[Item]
    vectors: Float32
    total: int
    members: frozenset[str] = field(default_factory=frozenset)


def in_time(deadline: float | None) -> None:
    """Raise DeadlineExceeded once time.monotonic() has passed the deadline."""
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineExceeded("there was not enough time: allow more, or narrow it down with a filter")


def pages(
    store: Store, collection: str, where: str, deadline: float | None, *, vectors: bool = False
) -> Iterator[list[Item]]:
    """Yield the items that match, by id; those that are written meanwhile may be among them or not."""
    token = ""
    while True:
        in_time(deadline)
        size = PAGE if vectors else IDS
        items, token = store.list_items(collection, where=where, page_size=size, page_token=token, vectors=vectors)
        if items:
            yield items
        if not token:
            return


def sample(
    store: Store, collection: str, where: str, most: int, deadline: float | None, *, asked: Collection[str] = ()
) -> Sample:
    """Return the items that match, or `most` of them drawn at random, the same ones each time.

    Reads the ids of all, and the vectors of those drawn (reservoir sampling: Vitter's algorithm R, 1985).
    """
    rng = np.random.default_rng(SEED)
    drawn, members = list[str](), set[str]()
    total = 0
    for items in pages(store, collection, where, deadline):
        for item in items:
            if total < most:
                drawn.append(item.id)
            elif (place := int(rng.integers(total + 1))) < most:
                drawn[place] = item.id
            total += 1
            if item.id in asked:
                members.add(item.id)
    drawn.sort()
    found = [item for start in range(0, len(drawn), PAGE) for item in _read(store, collection, drawn, start, deadline)]
    rows = matrix(found, store.get_collection(collection).dim)
    sound = has_direction(rows)
    kept = [item for item, good in zip(found, sound.tolist(), strict=True) if good]
    return Sample(kept, rows[sound], total, frozenset(members))


def _read(store: Store, collection: str, ids: Sequence[str], start: int, deadline: float | None) -> Iterator[Item]:
    in_time(deadline)
    for item in store.get(collection, ids[start : start + PAGE], vectors=True):
        if item is not None and item.vector is not None:  # some may be deleted meanwhile
            yield item


def matrix(items: Sequence[Item], dim: int) -> Float32:
    """Return the vectors of items, (n, dim) float32; zeros where one came without."""
    rows = np.zeros((len(items), dim), np.float32)
    for row, item in zip(rows, items, strict=True):
        if item.vector is not None:
            row[:] = item.vector
    return rows


def has_direction(vectors: Float32) -> NDArray[np.bool_]:
    """Tell which of the vectors (n, dim) are not all zeros: heads know directions only."""
    return np.asarray(vectors.any(axis=1))
