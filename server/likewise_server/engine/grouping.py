"""The best hits of each of the k nearest groups, however large the groups before them are.

First plain searches for more and more hits. Where the largest still leaves groups missing, the groups found are left
out by a filter and the search goes on among the rest, so that min(k, groups there are) always come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from likewise_server.engine.wheres import GroupField, both, room_beside
from likewise_server.store.filters import Scalar
from likewise_server.store.types import Hit, SearchResult

LARGEST_K = 10_000  # what a store answers at most
FIRST, GROWTH = 4, 8  # hits asked for at first, of those that would do in the best case; and how that grows

Key: TypeAlias = tuple[bool, Scalar]
"""A value, and whether it is a truth value: Python's 1 equals its True, a filter's does not."""

Search: TypeAlias = Callable[[Sequence[int], int, str, Sequence[str]], Awaitable[SearchResult]]
"""(queries, k, where, ids left out) -> the hits of each of those queries; `where` is beside the caller's own."""


@dataclass(frozen=True, slots=True)
class Group:
    """Hits that have `value` in common, best first."""

    value: Scalar
    hits: list[Hit]


@dataclass(slots=True)
class _Gathered:
    """What is known of one query's groups."""

    by: GroupField
    k: int
    size: int
    own: str = ""
    groups: dict[Key, Group] = field(default_factory=dict)  # in order of their best hits
    counts: dict[Key, int] = field(default_factory=dict)  # hits seen
    again: set[str] = field(default_factory=set)  # ids that no filter keeps away

    def take(self, hits: Iterable[Hit]) -> None:
        """Sort hits, which come best first, into groups."""
        for hit in hits:
            value = self.by.value_of(hit.item)
            if value is None or hit.item.id == self.own:
                continue
            key = (isinstance(value, bool), value)
            group = self.groups.setdefault(key, Group(value, []))
            self.counts[key] = self.counts.get(key, 0) + 1
            if len(group.hits) < self.size:
                group.hits.append(hit)

    def go_on(self, hits: Iterable[Hit]) -> None:
        """Take what a search found that should have left out the groups known before it."""
        known = set(self.groups)
        fresh: list[Hit] = []
        for hit in hits:
            value = self.by.value_of(hit.item)
            if value is None or (isinstance(value, bool), value) in known:
                self.again.add(hit.item.id)  # the filter had no room for its group, or sees its value otherwise
            else:
                fresh.append(hit)
        self.take(fresh)

    def nearest(self) -> list[Group]:
        """Return the first k groups."""
        ordered = sorted(self.groups.values(), key=lambda group: -group.hits[0].score)
        return ordered[: self.k]

    def partial(self) -> list[Group]:
        """Return those of them that may have more hits."""
        return [group for group in self.nearest() if len(group.hits) < self.size]

    def complete(self) -> bool:
        return len(self.groups) >= self.k and not self.partial()


async def grouped(
    search: Search, own: Sequence[str], by: GroupField, k: int, size: int, where: str
) -> list[list[Group]]:
    """Return up to `k` groups of up to `size` hits for each query, in order of their best hits.

    `own`: for each query the id of the item that it is, "" for none. `where` is the caller's filter, which
    `search` adds by itself.
    """
    rows = [_Gathered(by, k, size, item_id) for item_id in own]
    unfinished, short = list(range(len(rows))), list[int]()
    wanted = min(FIRST * k * size, LARGEST_K)
    while unfinished:
        found = await search(unfinished, wanted, "", ())
        left: list[int] = []
        for row, hits in zip(unfinished, found.hits, strict=True):
            rows[row] = _Gathered(by, k, size, own[row])
            rows[row].take(hits)
            if rows[row].complete():
                continue
            if len(hits) == wanted:
                left.append(row)
            elif not found.exact:  # an approximate index may give fewer than there are; a filtered search does not
                short.append(row)
        unfinished = left
        if wanted == LARGEST_K:
            break
        wanted = min(wanted * GROWTH, LARGEST_K)
    for row in (*unfinished, *short):
        await _find_rest(search, row, rows[row], room_beside(where, by.present()))
        await _fill(search, row, rows[row])
    return [row.nearest() for row in rows]


async def _find_rest(search: Search, row: int, gathered: _Gathered, room: int) -> None:
    """Search on without the groups found until there are k, or no more."""
    while len(gathered.groups) < gathered.k:
        # Large groups first: those that the filter has no room for are left out item by item.
        values = [gathered.groups[key].value for key, _ in sorted(gathered.counts.items(), key=lambda pair: -pair[1])]
        rest = both(gathered.by.present(), gathered.by.is_none_of(values, room))
        without = [*gathered.again, *filter(None, [gathered.own])]
        [hits] = (await search([row], LARGEST_K, rest, without)).hits
        gathered.go_on(hits)
        if len(hits) < LARGEST_K:
            return


async def _fill(search: Search, row: int, gathered: _Gathered) -> None:
    """Ask for the hits of each group that is short of some."""
    for group in gathered.partial():
        without = [gathered.own] if gathered.own else []
        [hits] = (await search([row], gathered.size, gathered.by.is_value(group.value), without)).hits
        if len(hits) > len(group.hits):
            group.hits[:] = hits
