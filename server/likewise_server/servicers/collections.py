"""CollectionService: messages in, the engine's items and hits out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceServicer
from likewise_server.engine.collections import Collections, Upsert
from likewise_server.engine.duplicates import find_duplicates
from likewise_server.engine.engine import Engine
from likewise_server.engine.labels import set_labels
from likewise_server.errors import InvalidArgument, LikewiseError, Unavailable
from likewise_server.servicers import convert
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.hits import duplicates_reply, search_reply
from likewise_server.servicers.limits import Limits
from likewise_server.servicers.queries import search_from
from likewise_server.servicers.windows import SHUTTING_DOWN, in_order, until
from likewise_server.store.types import Outcome

# Messages of one upsert stream that are embedded side by side; replies keep their order.
UPSERTS_IN_FLIGHT = 4
AT_ONCE = 64  # items of one message that are read without letting others have the event loop
ITEM_BYTES = 2048  # what an item without its vector is reckoned at when a page is cut to fit a message

OUTCOMES = {
    Outcome.CREATED: cpb.OUTCOME_CREATED,
    Outcome.UPDATED: cpb.OUTCOME_UPDATED,
    Outcome.UNCHANGED: cpb.OUTCOME_UNCHANGED,
}


class CollectionServicer(CollectionServiceServicer):
    """Keeps items and searches them."""

    def __init__(self, engine: Engine, limits: Limits, draining: asyncio.Event) -> None:
        self._collections: Collections = engine.collections
        self._searches = engine.searches
        self._store = engine.store
        self._workers = engine.workers
        self._fits = engine.fits
        self._limits = limits
        self._draining = draining

    async def CreateCollection(
        self,
        request: cpb.CreateCollectionRequest,
        context: Context,  # noqa: ARG002  # the signature is gRPC's
    ) -> cpb.CreateCollectionResponse:
        """Create a collection of a backbone's space, or of bare vectors."""
        external = request.WhichOneof("source") == "dim"
        if external and not request.dim:
            raise InvalidArgument("dim is 0: say how many numbers a vector has, or name a backbone")
        info = await self._collections.create(
            request.name,
            ref=None if external else convert.ref_from(request.backbone),
            dim=request.dim if external else 0,
            metric=convert.metric_from(request.metric),
            request_id=request.request_id,
            index=request.index or "auto",
            indexed=list(request.indexed_attributes),
            storage=convert.storage_from(request.storage),
        )
        return cpb.CreateCollectionResponse(collection=convert.collection_to(info))

    async def GetCollection(
        self,
        request: cpb.GetCollectionRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.GetCollectionResponse:
        """Return one collection."""
        info = await self._workers.run(self._store.get_collection, request.name)
        return cpb.GetCollectionResponse(collection=convert.collection_to(info))

    async def ListCollections(
        self,
        request: cpb.ListCollectionsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.ListCollectionsResponse:
        """Return a page of collections."""
        size = self._limits.page(request.page_size)
        infos, token = await self._workers.run(self._store.list_collections, size, request.page_token)
        return cpb.ListCollectionsResponse(
            collections=[convert.collection_to(info) for info in infos], next_page_token=token
        )

    async def UpdateCollection(
        self,
        request: cpb.UpdateCollectionRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.UpdateCollectionResponse:
        """Change how a collection is searched."""
        info = await self._workers.run(
            self._store.alter_collection,
            request.name,
            index=request.index if request.HasField("index") else None,
            indexed=list(request.indexed_attributes.names) if request.HasField("indexed_attributes") else None,
        )
        return cpb.UpdateCollectionResponse(collection=convert.collection_to(info))

    async def DeleteCollection(
        self,
        request: cpb.DeleteCollectionRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.DeleteCollectionResponse:
        """Delete a collection with its items and heads."""
        await self._workers.run(self._store.delete_collection, request.name)
        return cpb.DeleteCollectionResponse()

    async def UpsertItems(
        self, requests: AsyncIterator[cpb.UpsertItemsRequest], context: Context
    ) -> AsyncIterator[cpb.UpsertItemsResponse]:
        """Reply to each message once its items are durable."""
        collection = ""
        before: asyncio.Event | None = None
        deadline = deadline_of(context)  # asked now: the context of a stream that was dropped may be gone

        async def one(request: cpb.UpsertItemsRequest) -> cpb.UpsertItemsResponse:
            # Messages are embedded side by side but stored one after the other: of an id sent twice the later wins.
            nonlocal collection, before
            turn, before = before, asyncio.Event()
            done = before
            try:
                collection = request.collection or collection
                if not collection:
                    raise InvalidArgument("the first message of the stream must name the collection")
                return await self._upsert(collection, request, deadline, turn)
            finally:
                done.set()

        async for reply in in_order(until(requests, self._draining), one, UPSERTS_IN_FLIGHT):
            yield reply
        if self._draining.is_set():
            raise Unavailable(SHUTTING_DOWN)

    async def _upsert(
        self, collection: str, request: cpb.UpsertItemsRequest, deadline: float | None, turn: asyncio.Event | None
    ) -> cpb.UpsertItemsResponse:
        self._limits.check_items(len(request.items), "items")
        items: list[Upsert] = []
        results = [cpb.UpsertResult(id=item.info.id) for item in request.items]
        sound: list[cpb.UpsertResult] = []
        for number, (item, result) in enumerate(zip(request.items, results, strict=True)):
            if number % AT_ONCE == 0:
                await self._collections.breathe()
            try:
                items.append(_upsert_item(item))
            except LikewiseError as error:
                result.error.CopyFrom(convert.status_of(error))
            else:
                sound.append(result)
        done = await self._collections.upsert(
            collection,
            items,
            fingerprint=request.fingerprint,
            skip_unchanged=request.skip_unchanged,
            deadline=deadline,
            turn=turn,
        )
        for outcome, result in zip(done.outcomes, sound, strict=True):
            if isinstance(outcome, LikewiseError):
                result.error.CopyFrom(convert.status_of(outcome))
            else:
                result.outcome = OUTCOMES[outcome]
        return cpb.UpsertItemsResponse(
            results=results,
            request_id=request.request_id,
            fingerprint=done.fingerprint,
            timings=convert.timings_to(done.timings),
        )

    async def GetItems(
        self,
        request: cpb.GetItemsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.GetItemsResponse:
        """Return the items found and the ids that were not."""
        self._limits.check_items(len(request.ids), "ids")
        items, fingerprint = await self._collections.get(
            request.collection, list(request.ids), vectors=request.with_vectors
        )
        reply = cpb.GetItemsResponse(
            items=[convert.item_to(item) for item in items if item],
            missing_ids=[i for i, item in zip(request.ids, items, strict=True) if item is None],
            fingerprint=fingerprint,
        )
        self._limits.check_reply(reply)
        return reply

    async def ListItems(
        self,
        request: cpb.ListItemsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.ListItemsResponse:
        """Return a page of items."""
        info = await self._workers.run(self._store.get_collection, request.collection)
        row_bytes = ITEM_BYTES + 4 * info.dim * request.with_vectors
        size = self._limits.page(request.page_size, row_bytes=row_bytes)
        while True:
            items, token, fingerprint = await self._collections.list_items(
                request.collection,
                where=request.where,
                page_size=size,
                page_token=request.page_token,
                vectors=request.with_vectors,
            )
            reply = cpb.ListItemsResponse(
                items=[convert.item_to(item) for item in items], next_page_token=token, fingerprint=fingerprint
            )
            # Items with large attributes: a shorter page fits, and the token goes on from there.
            if reply.ByteSize() <= self._limits.max_message_bytes or size == 1:
                return reply
            size = max(1, size // 4)

    async def CountItems(
        self,
        request: cpb.CountItemsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.CountItemsResponse:
        """Count the items that match."""
        count = await self._workers.run(self._store.count, request.collection, request.where)
        return cpb.CountItemsResponse(count=count)

    async def DeleteItems(
        self,
        request: cpb.DeleteItemsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.DeleteItemsResponse:
        """Delete by ids or by filter."""
        self._limits.check_items(len(request.ids), "ids")
        deleted = await self._collections.delete(request.collection, list(request.ids), request.where)
        return cpb.DeleteItemsResponse(deleted=deleted)

    async def LabelItems(
        self,
        request: cpb.LabelItemsRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.LabelItemsResponse:
        """Label stored items anew."""
        self._limits.check_items(len(request.labels), "labels")
        labels = [(each.id, each.label if each.HasField("label") else None) for each in request.labels]
        changed, missing = await self._workers.run(set_labels, self._store, request.collection, labels)
        return cpb.LabelItemsResponse(changed=changed, missing_ids=missing)

    async def Search(self, request: cpb.SearchRequest, context: Context) -> cpb.SearchResponse:
        """Return the nearest items of each query."""
        query, wanted = search_from(request, self._limits)
        found = await self._searches.search(request.collection, query, wanted, deadline=deadline_of(context))
        reply = search_reply(found, ids_only=wanted.ids_only)
        self._limits.check_reply(reply)
        return reply

    async def FindDuplicates(
        self,
        request: cpb.FindDuplicatesRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[cpb.FindDuplicatesResponse]:
        """Tell how far the search is, then what it found."""
        events = find_duplicates(
            self._store,
            request.collection,
            min_score=request.min_score if request.HasField("min_score") else None,
            where=request.where,
            max_neighbours=request.max_neighbours,
        )
        # One step at a time: whoever cancels waits for one page at most, and others get their turn between two.
        while (event := await self._fits.run(next, events, None)) is not None:
            yield duplicates_reply(event)
            if self._draining.is_set():
                raise Unavailable("the server is shutting down: ask again in a moment")

    async def CheckCollection(
        self,
        request: cpb.CheckCollectionRequest,
        context: Context,  # noqa: ARG002
    ) -> cpb.CheckCollectionResponse:
        """Verify what is stored; with `repair`, rebuild what is derived."""
        report = await self._fits.run(self._store.fsck, request.collection, repair=request.repair)
        return cpb.CheckCollectionResponse(
            items_checked=report.checked.get("items", 0), problems=report.problems, repaired=report.repaired
        )


def _upsert_item(item: cpb.UpsertItem) -> Upsert:
    content, info = item.WhichOneof("content"), item.info  # each time it is asked for takes a while
    return Upsert(
        id=info.id,
        image=item.image.data if content == "image" else None,
        vector=convert.vector_from(item.vector) if content == "vector" else None,
        label=info.label if info.HasField("label") else None,
        attributes=convert.attributes_from(info.attributes) if info.HasField("attributes") else {},
        uri=info.uri,
        content_hash=info.content_hash,
    )
