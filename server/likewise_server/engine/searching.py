"""Search: queries made into vectors, vectors into hits or groups of hits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from likewise_server.engine.embedding import Embedder
from likewise_server.engine.examples import ByExamples, combined
from likewise_server.engine.grouping import LARGEST_K, Group, grouped
from likewise_server.engine.merging import Merged
from likewise_server.engine.precedence import Precedence
from likewise_server.engine.queries import ByIds, Query, Resolved, resolve, space_of
from likewise_server.engine.timings import Timings
from likewise_server.engine.wheres import both, group_field
from likewise_server.engine.workers import Workers
from likewise_server.errors import DeadlineExceeded, InvalidArgument, LikewiseError
from likewise_server.store.types import CollectionSpace, Float32, Hit, SearchResult, Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a search.

    `k` hits per query that match `where` and reach `min_score`; with `group_by`, k groups of `group_size` hits.
    `ids_only`: ids and scores are all that is wanted of a hit.
    """

    k: int
    where: str = ""
    min_score: float | None = None
    ids_only: bool = False
    group_by: str = ""
    group_size: int = 1

    def check(self) -> None:
        """Raise InvalidArgument for a score that is no number and for groups of nothing."""
        if self.min_score is not None and math.isnan(self.min_score):
            raise InvalidArgument("min_score is not a number: give the score that hits must reach, or leave it out")
        if self.group_size != 1 and not self.group_by:
            raise InvalidArgument("group_size without group_by: say what to group by, as label or an attribute")


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one query, in order of their best hits."""

    groups: list[Group]


@dataclass(slots=True)
class Found:
    """Hits, groups of them, or an error, per query, in order, and how the search was done."""

    results: list[list[Hit] | Groups | LikewiseError]
    exact: bool
    measured_recall: float | None
    scanned: int
    filtered_count: int | None
    fingerprint: str
    timings: Timings


class Searches:
    """Finds what is near."""

    def __init__(self, store: Store, embedder: Embedder, workers: Workers, precedence: Precedence) -> None:
        self._store = store
        self._embedder = embedder
        self._workers = workers
        self._precedence = precedence
        self._merged = Merged()

    async def search(
        self, collection: str, query: Query | ByExamples, wanted: Wanted, *, deadline: float | None = None
    ) -> Found:
        """Return the nearest items of each query. Stored items that are asked with are left out of the hits.

        Raises NotFound, InvalidArgument (k, filter, score, group) and FailedPrecondition (space) for the whole call.
        """
        wanted.check()
        timings = Timings()
        info = await space_of(self._store, self._workers, collection)
        as_vectors = partial(
            resolve,
            info=info,
            embedder=self._embedder,
            store=self._store,
            workers=self._workers,
            timings=timings,
            deadline=deadline,
        )
        if isinstance(query, ByExamples):
            resolved = await combined(query, info, as_vectors)
            own, left_out = [""] * len(resolved.usable), query.ids
        else:
            resolved = await as_vectors(query)
            own = [query.ids[i] if isinstance(query, ByIds) else "" for i in resolved.usable]
            left_out = []
        search = _Search(self._store, self._workers, self._merged, info, resolved, wanted, left_out, timings, deadline)
        found: Sequence[list[Hit] | Groups]
        with self._precedence.searching():
            if wanted.group_by:
                by = group_field(wanted.group_by)
                groups = await grouped(search.rows, own, by, wanted.k, wanted.group_size, wanted.where)
                found = [Groups(each) for each in groups]
            else:
                found = await search.all(own)
        results: list[list[Hit] | Groups | LikewiseError] = [
            resolved.errors.get(i, []) for i in range(len(resolved.vectors))
        ]
        for i, answer in zip(resolved.usable, found, strict=True):
            results[i] = answer
        return Found(
            results,
            exact=search.exact,
            measured_recall=search.measured_recall,
            scanned=search.scanned,
            filtered_count=search.filtered_count,
            fingerprint=info.fingerprint,
            timings=timings,
        )


class _Search:
    """The searches in the store that answer one request, and what they say of how they were done."""

    def __init__(
        self,
        store: Store,
        workers: Workers,
        merged: Merged,
        info: CollectionSpace,
        resolved: Resolved,
        wanted: Wanted,
        left_out: Sequence[str],
        timings: Timings,
        deadline: float | None,
    ) -> None:
        self._store = store
        self._workers = workers
        self._merged = merged
        self._info = info
        self._vectors: Float32 = resolved.vectors[resolved.usable] if resolved.errors else resolved.vectors
        self._wanted = wanted
        self._left_out = left_out
        self._timings = timings
        self._deadline = deadline
        self.exact = True
        self.measured_recall: float | None = None
        self.scanned = 0
        self.filtered_count: int | None = None

    async def all(self, own: Sequence[str]) -> list[list[Hit]]:
        """Return the hits of every query, without the item that it is itself."""
        k = self._wanted.k
        if not any(own):
            return (await self._ask(self._vectors, k, self._wanted.where, ())).hits
        # One more than asked, so that leaving out the item itself still leaves k.
        found = await self._ask(self._vectors, min(k + 1, LARGEST_K), self._wanted.where, ())
        return [
            [hit for hit in hits if hit.item.id != item_id][:k] for hits, item_id in zip(found.hits, own, strict=True)
        ]

    async def rows(self, rows: Sequence[int], k: int, where: str, without: Sequence[str]) -> SearchResult:
        """Return the hits of some queries, of items that match `where` as well and are not in `without`."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DeadlineExceeded("there was not enough time to find all groups: allow more, or ask for fewer")
        return await self._ask(self._vectors[list(rows)], k, both(self._wanted.where, where), without)

    async def _ask(self, vectors: Float32, k: int, where: str, without: Sequence[str]) -> SearchResult:
        excluded, min_score = (*self._left_out, *without), self._wanted.min_score
        bare = self._wanted.ids_only and not self._wanted.group_by

        async def ask(queries: Float32) -> SearchResult:
            return await self._workers.run(
                self._store.search,
                self._info.name,
                queries,
                k,
                where=where,
                exclude_ids=excluded,
                min_score=min_score,
                bare=bare,
            )

        with self._timings.stage("store"):
            # Not the name alone: between two callers a collection may be made anew under its old name.
            asked = (self._info.name, self._info.created_at, k, where, min_score, bare)
            found = await ask(vectors) if excluded else await self._merged.search(asked, vectors, ask)
        self.exact &= found.exact
        if found.measured_recall is not None:
            self.measured_recall = min(found.measured_recall, self.measured_recall or 1.0)
        self.scanned += found.scanned
        if where == self._wanted.where:
            self.filtered_count = found.filtered_count
        return found
