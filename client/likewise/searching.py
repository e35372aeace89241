"""How a collection is searched: by images, vectors, items, examples; and for duplicates. Part of AsyncCollection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from likewise import convert
from likewise.duplicates import collected
from likewise.errors import InvalidArgument, LikewiseError
from likewise.images import ImageLike
from likewise.requests import QueryValue, ask_all, example_messages, queries, query_fields, whole
from likewise.results import CollectionInfo, Duplicates, Hit, Hits, Item, Limits
from likewise.transport import Transport
from likewise_proto.v1 import collection_pb2 as cpb


class SearchCalls:
    """The calls; AsyncCollection sets the attributes."""

    _transport: Transport
    _limits: Callable[[], Awaitable[Limits]]
    _window: int
    _items: Any
    info: CollectionInfo

    async def search(
        self,
        image: ImageLike | None = None,
        *,
        vector: Any = None,
        id: str | None = None,  # noqa: A002  # it is what the item has
        k: int = 10,
        where: str = "",
        min_score: float | None = None,
        group_by: str = "",
        group_size: int = 1,
        ids_only: bool = False,
        fingerprint: str = "",
    ) -> Hits:
        """Return the `k` nearest items of an image, a vector, or a stored item (which is left out).

        `where` keeps only items that match, as "label = 'cat' and year >= 2020"; `min_score` only hits that reach
        it. With `group_by` (label, or an attribute as filters name it) come `k` groups of up to `group_size` hits,
        see `Hits.groups`. `ids_only` leaves all but ids and scores out of the answer, which makes it faster.
        """
        given = [query is not None for query in (image, vector, id)]
        if sum(given) != 1:
            raise InvalidArgument("search by one of: an image, vector=, id=")
        [hits] = await self.search_many(
            [image] if image is not None else None,
            vectors=[vector] if vector is not None else None,
            ids=[id] if id is not None else None,
            k=k,
            where=where,
            min_score=min_score,
            group_by=group_by,
            group_size=group_size,
            ids_only=ids_only,
            fingerprint=fingerprint,
        )
        return _sound(hits)

    async def search_many(
        self,
        images: Sequence[ImageLike] | None = None,
        *,
        vectors: Any = None,
        ids: Sequence[str] | None = None,
        k: int = 10,
        where: str = "",
        min_score: float | None = None,
        group_by: str = "",
        group_size: int = 1,
        ids_only: bool = False,
        fingerprint: str = "",
    ) -> list[Hits]:
        """Return one list of hits per query, in order; a query that failed has its `.error`. See `search`."""
        limits = await self._limits()
        wanted = self._wanted(k, where, min_score, group_by, group_size, ids_only=ids_only)

        async def ask(chunk: list[QueryValue]) -> list[Hits]:
            fields = query_fields(chunk, fingerprint or self.info.fingerprint)
            return await self._search(cpb.SearchRequest(**wanted, **fields))

        def failed(error: LikewiseError) -> Hits:
            return Hits(error=error)

        each = wanted["k"] * wanted["group_size"]
        return await ask_all(queries(images, vectors, ids, limits), limits, ask, failed, self._window, each)

    async def search_examples(
        self,
        positive: Sequence[ImageLike | Hit | Item] = (),
        negative: Sequence[ImageLike | Hit | Item] = (),
        *,
        positive_ids: Sequence[str] = (),
        negative_ids: Sequence[str] = (),
        k: int = 10,
        where: str = "",
        min_score: float | None = None,
        group_by: str = "",
        group_size: int = 1,
        ids_only: bool = False,
        fingerprint: str = "",
    ) -> Hits:
        """Return the `k` items that are most like the positive examples and unlike the negative ones.

        Examples are images, vectors (1-d arrays), hits and items; stored items also by id. Those among them that are
        stored are left out of the hits. The rest is as for `search`.
        """
        limits = await self._limits()
        examples = cpb.Examples(
            positive=example_messages(positive, positive_ids, limits),
            negative=example_messages(negative, negative_ids, limits),
        )
        wanted = self._wanted(k, where, min_score, group_by, group_size, ids_only=ids_only)
        request = cpb.SearchRequest(**wanted, examples=examples, fingerprint=fingerprint or self.info.fingerprint)
        [hits] = await self._search(request)
        return _sound(hits)

    async def duplicates(
        self,
        min_score: float | None = None,
        *,
        where: str = "",
        max_neighbours: int = 0,
        progress: bool | None = None,
    ) -> Duplicates:
        """Return the groups of items that are nearly the same, the largest first.

        Two items are where their score reaches `min_score`: by default 0.95 by cosine and as much by l2; by dot it
        must be given. `max_neighbours` (0: 50) are looked at for each item. Takes a search for every item: it asks
        for patience with large collections, and shows a progress bar on a terminal.
        """
        request = cpb.FindDuplicatesRequest(
            collection=self.info.name,
            min_score=min_score,
            where=where,
            max_neighbours=whole(max_neighbours, "max_neighbours"),
        )
        replies = self._transport.stream(self._items.FindDuplicates, request)
        return await collected(replies, f"looking for duplicates in {self.info.name}", progress=progress)

    def _wanted(
        self, k: int, where: str, min_score: float | None, group_by: str, group_size: int, *, ids_only: bool
    ) -> dict[str, Any]:
        return {
            "collection": self.info.name,
            "k": whole(k, "k"),
            "where": where,
            "min_score": min_score,
            "group_by": group_by,
            "group_size": whole(group_size, "group_size"),
            "ids_only": ids_only,
        }

    async def _search(self, request: cpb.SearchRequest) -> list[Hits]:
        reply = await self._transport.unary(self._items.Search, request)
        return [convert.hits(result, reply) for result in reply.results]


def _sound(hits: Hits) -> Hits:
    if hits.error:
        raise hits.error
    return hits
