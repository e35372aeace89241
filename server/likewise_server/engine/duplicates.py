"""Near-duplicates of a whole collection: pairs that reach a score, and the groups that they link.

Pages through the items, searches for each page's vectors and keeps only which items are linked, so that memory does not
grow with the vectors. Groups are the connected components, by union-find (Tarjan, "Efficiency of a good but not linear
set union algorithm", J. ACM 22, 1975): an item may be in a group for being near some of it and not near its first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from likewise_server.engine.grouping import LARGEST_K
from likewise_server.errors import InvalidArgument
from likewise_server.store.types import CollectionInfo, Float32, Hit, Item, Metric, Store

PAGE = 256  # queries of one search: enough for a matrix product, few enough to stop soon
PART = 1000  # items of a large group that are read and told at once
COSINE = 0.95  # a picture saved again smaller or in another format reaches it, another picture of the thing seldom
NEIGHBOURS = 50


@dataclass(frozen=True, slots=True)
class Progress:
    """Items searched for, of all that there were at the start."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What was found, and how; comes before the groups.

    `duplicates`: items in groups, less one for each group. `truncated`: items with more neighbours than were looked
    at, so that a pair may be missing. `exact`: none is missing for an approximate index, whose recall is
    `measured_recall`.
    """

    items: int
    groups: int
    duplicates: int
    min_score: float
    exact: bool
    measured_recall: float | None
    truncated: int


@dataclass(frozen=True, slots=True)
class GroupPart:
    """Some items of a group, by id, with their score to its first item. `more`: the group goes on in the next part."""

    hits: list[Hit]
    more: bool


Event = Progress | Summary | GroupPart


def find_duplicates(
    store: Store, collection: str, *, min_score: float | None = None, where: str = "", max_neighbours: int = 0
) -> Iterator[Event]:
    """Yield progress, then the summary, then the groups, largest first. Blocks; each step is one page or part.

    `min_score` by default is 0.95 by cosine, and by l2 the distance that this is between vectors of the first page's
    mean length. `max_neighbours` (0: 50) are looked at for each item.
    Raises NotFound, and InvalidArgument for a bad filter, score or number and for no score where the metric is dot.
    """
    info = store.get_collection(collection)
    neighbours = max_neighbours or NEIGHBOURS
    if not 1 <= neighbours <= LARGEST_K - 2:
        raise InvalidArgument(f"max_neighbours is {neighbours}: give 1 to {LARGEST_K - 2}, or 0 for {NEIGHBOURS}")
    if min_score is None and info.metric == "dot":
        raise InvalidArgument(
            "min_score is needed here: inner products have no scale of their own. Search for an item of which you know "
            "a duplicate, and take a score between that one's and the next"
        )
    if min_score is not None and math.isnan(min_score):
        raise InvalidArgument("min_score is not a number: give the score that makes two items duplicates")
    linking = _Linking(store, info, where, neighbours, min_score)
    total = store.count(collection, where)
    yield Progress(0, total)
    for done in linking.pages():
        yield Progress(done, max(done, total))
    groups = linking.links.groups()
    yield linking.summary(groups)
    for ids in groups:
        yield from _told(store, info, ids)


def default_score(info: CollectionInfo, vectors: Float32) -> float:
    """Return the score from which two items are near-duplicates where nobody said; `vectors` are some, (n, dim)."""
    if info.metric == "cosine":
        return COSINE
    # Between two vectors of length r with cosine c lies the distance r sqrt(2 - 2c).
    length = float(np.linalg.norm(vectors.astype(np.float64), axis=1).mean())
    return -length * math.sqrt(2 - 2 * COSINE)


class _Linking:
    """The search, page by page, and what is known so far."""

    def __init__(
        self, store: Store, info: CollectionInfo, where: str, neighbours: int, min_score: float | None
    ) -> None:
        self._store = store
        self._info = info
        self._where = where
        self._neighbours = neighbours
        self._min_score = min_score
        self.links = Links()
        self._done = 0
        self._exact = True
        self._recall: float | None = None
        self._truncated = 0

    def pages(self) -> Iterator[int]:
        """Search for all items; yield how many are done after each page."""
        token = ""
        while True:
            items, token = self._store.list_items(
                self._info.name, where=self._where, page_size=PAGE, page_token=token, vectors=True
            )
            if items:
                self._search(items)
                self._done += len(items)
                yield self._done
            if not token:
                return

    def _search(self, items: Sequence[Item]) -> None:
        vectors = np.stack([_vector(item) for item in items])
        if self._min_score is None:
            self._min_score = default_score(self._info, vectors)
        found = self._store.search(
            self._info.name,
            vectors,
            self._neighbours + 2,  # the item itself, and one that tells whether there are any beyond
            where=self._where,
            min_score=self._min_score,
            bare=True,
        )
        self._exact &= found.exact
        if found.measured_recall is not None:
            self._recall = min(found.measured_recall, 1.0 if self._recall is None else self._recall)
        for item, hits in zip(items, found.hits, strict=True):
            others = [hit.item.id for hit in hits if hit.item.id != item.id]
            self._truncated += len(others) > self._neighbours
            self.links.link(item.id, others[: self._neighbours])

    def summary(self, groups: Sequence[Sequence[str]]) -> Summary:
        """Return what was found."""
        return Summary(
            items=self._done,
            groups=len(groups),
            duplicates=sum(map(len, groups)) - len(groups),
            min_score=COSINE if self._min_score is None else self._min_score,  # of no items
            exact=self._exact,
            measured_recall=self._recall,
            truncated=self._truncated,
        )


class Links:
    """Which items are linked, directly or through others: union-find with path halving, by size."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._parents: list[int] = []
        self._sizes: list[int] = []

    def link(self, item_id: str, others: Sequence[str]) -> None:
        """Put an item into one group with all of `others`."""
        if not others:
            return
        root = self._root(item_id)
        for other in others:
            joined = self._root(other)
            if joined == root:
                continue
            if self._sizes[joined] > self._sizes[root]:
                root, joined = joined, root
            self._parents[joined] = root
            self._sizes[root] += self._sizes[joined]

    def _root(self, item_id: str) -> int:
        place = self._places.setdefault(item_id, len(self._parents))
        if place == len(self._parents):
            self._parents.append(place)
            self._sizes.append(1)
        parents = self._parents
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def groups(self) -> list[list[str]]:
        """Return the ids of each group in order, the largest group first."""
        members: dict[int, list[str]] = {}
        for item_id in self._places:
            members.setdefault(self._root(item_id), []).append(item_id)
        return sorted((sorted(ids) for ids in members.values()), key=lambda ids: (-len(ids), ids[0]))


def _told(store: Store, info: CollectionInfo, ids: Sequence[str]) -> Iterator[GroupPart]:
    """Read a group's items again and score them; what was deleted meanwhile is left out."""
    first: Float32 | None = None
    for start in range(0, len(ids), PART):
        items = [item for item in store.get(info.name, ids[start : start + PART], vectors=True) if item is not None]
        more = start + PART < len(ids)
        if len(items) < 2 and first is None and not more:  # noqa: PLR2004  # one item is no group
            return
        if not items:
            yield GroupPart([], more)
            continue
        vectors = np.stack([_vector(item) for item in items])
        first = vectors[0] if first is None else first
        scores = _scores(vectors, first, info.metric)
        yield GroupPart([Hit(item, float(score)) for item, score in zip(items, scores, strict=True)], more)


def _scores(vectors: Float32, first: Float32, metric: Metric) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    rows, one = vectors.astype(np.float64), first.astype(np.float64)
    if metric == "l2":
        return np.asarray(-np.linalg.norm(rows - one, axis=1))
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        one = one / np.linalg.norm(one)
    return np.asarray(rows @ one)


def _vector(item: Item) -> Float32:
    if item.vector is None:
        raise AssertionError(f"item {item.id!r} came without its vector")  # it was asked for
    return item.vector
