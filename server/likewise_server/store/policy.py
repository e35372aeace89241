"""When rows go into a segment, which segments are merged, and which get an approximate index.

The figures are from benchmarks/thresholds.py; docs/search.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from likewise_server.store.segments import FLAT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import Snapshot

SEAL = 8_192  # rows outside of segments before they become one
HELD = 6  # times as many, of which most are in lists
SHOWN_TO_ALL = 20_000  # rows that are compared one by one in every search without anyone noticing
LISTED = 8  # of the rows that are in lists, one in so many is compared one by one before it gets there too
APART = 50_000  # rows of a segment that is built in a process of its own, approximate or not
MERGE = 3  # a segment is merged with newer ones that have a third of its rows or more
MIN_DEAD = 1_000
DEAD_SHARE = 0.15
TARGET = 0.99  # recall


@dataclass(frozen=True, slots=True)
class Plan:
    """Build one segment of all items past `after_vid`, about `rows` of them, with this factory."""

    after_vid: int
    rows: int
    factory: str

    @property
    def apart(self) -> bool:
        """Whether it is so much work that a process of its own should do it."""
        return self.factory != FLAT or self.rows > APART


@dataclass(frozen=True, slots=True)
class Size:
    """Of a segment: its rows, how many of them are dead, and the last vid that it took in."""

    rows: int
    dead: int
    last_vid: int


def due(snapshot: Snapshot) -> bool:
    """Return whether the background should build something."""
    # The first are put into lists while a second lot is written.
    most = SEAL * (HELD if snapshot.listed is not None else 2 if _lists(snapshot) else 1)
    rows = sum(map(len, snapshot.in_memory))  # dead ones too: they go with the next segment
    return rows > most or any(rotten(Size(len(part), part.dead, 0)) for part in snapshot.segments)


def listable(snapshot: Snapshot) -> bool:
    """Return whether so many rows are in no segment and no lists that those of a segment should take them in."""
    known = 0 if snapshot.listed is None else len(snapshot.listed)
    return len(snapshot.delta) > max(SEAL / 2, known / LISTED) and _lists(snapshot)


def _lists(snapshot: Snapshot) -> bool:
    return any(part.approximation and part.approximation.lends for part in snapshot.segments)


def plan(collection: Collection, sizes: Sequence[Size], outside: int) -> Plan:
    """Return what to build so that no row is outside of segments, of which there are `sizes`, oldest first."""
    start, rows = len(sizes), outside
    while start and sizes[start - 1].rows < MERGE * rows:
        start -= 1
        rows += sizes[start].rows - sizes[start].dead
    for number, size in enumerate(sizes[:start]):
        if rotten(size):
            rows += sum(each.rows - each.dead for each in sizes[number:start])
            start = number
            break
    return Plan(sizes[start - 1].last_vid if start else 0, rows, factory(collection, rows))


def whole(collection: Collection) -> Plan:
    """Return the plan that builds everything anew."""
    return Plan(0, collection.item_count, factory(collection, collection.item_count))


def factory(collection: Collection, rows: int) -> str:
    """Return the factory for a segment of so many rows; "auto" leaves the choice of lists to the builder."""
    if collection.index == "exact" or rows <= SHOWN_TO_ALL:
        return FLAT
    return collection.index


def rotten(size: Size) -> bool:
    """Return whether so many rows are dead that the segment is worth building again."""
    return size.dead > max(MIN_DEAD, DEAD_SHARE * size.rows)
