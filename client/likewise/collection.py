"""AsyncCollection: items in, hits and predictions out. `Collection` is the same, blocking."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likewise import convert
from likewise.chunks import cut, in_flight, prepared
from likewise.errors import InvalidArgument, LikewiseError, OutOfRange
from likewise.heads import LONG_S, HeadCalls
from likewise.images import ImageLike, uri_of
from likewise.labels import LabelCalls
from likewise.progress import bar
from likewise.requests import (
    ids_per_message,
    same_length,
    several,
    text,
    upsert_message,
    upsert_weight,
)
from likewise.results import CheckReport, CollectionInfo, Item, Limits, Outcome, Outcomes
from likewise.searching import SearchCalls
from likewise.transport import Transport
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub


@dataclass(slots=True)
class NewItem:
    """Something to store: an image or a vector, with an id that decides what it replaces."""

    id: str
    image: ImageLike | None = None
    vector: Any = None  # (dim,) floats
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    uri: str = ""


class AsyncCollection(SearchCalls, HeadCalls, LabelCalls):
    """A collection on a server; searches are in searching.py, heads in heads.py, labels in labels.py.

    `info` is as of when it was fetched; `await refresh()` fetches it again.
    """

    def __init__(
        self,
        transport: Transport,
        info: CollectionInfo,
        limits: Callable[[], Awaitable[Limits]],
        window: int,
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._window = window
        self._items: Any = CollectionServiceStub(transport.channel)
        self._heads: Any = HeadServiceStub(transport.channel)
        self.info = info

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.info.backbone or f'{self.info.dim}-d vectors'}>"

    async def refresh(self) -> CollectionInfo:
        """Fetch the description again and return it."""
        request = cpb.GetCollectionRequest(name=self.name)
        reply = await self._transport.unary(self._items.GetCollection, request)
        self.info = convert.collection(reply.collection)
        return self.info

    async def update(self, *, index: str | None = None, indexed: Sequence[str] | None = None) -> CollectionInfo:
        """Change how the collection is searched, or which attributes are indexed; None leaves one as it is.

        An index is built aside: `refresh().state` tells how far it is, and searches answer meanwhile. Values are
        those of `create_collection`.
        """
        request = cpb.UpdateCollectionRequest(name=self.name, index=index)
        if indexed is not None:
            names = [text(attribute, "attribute") for attribute in several(indexed, "indexed")]
            request.indexed_attributes.CopyFrom(cpb.AttributeNames(names=names))
        reply = await self._transport.unary(self._items.UpdateCollection, request)
        self.info = convert.collection(reply.collection)
        return self.info

    # Items

    async def add(
        self,
        images: Iterable[ImageLike],
        *,
        labels: Sequence[str | None] | None = None,
        ids: Sequence[str] | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        skip_unchanged: bool = False,
        progress: bool | None = None,
    ) -> Outcomes:
        """Embed and store images; return one outcome per image, in order.

        `ids` default to the path, or to the SHA-256 of the bytes for images in memory. An id that
        exists is replaced. With `skip_unchanged`, bytes that are stored already are not embedded again.
        """
        sources = list(several(images, "images"))
        same_length(len(sources), labels=labels, ids=ids, attributes=attributes)
        items = (
            NewItem(
                id=ids[i] if ids is not None else uri_of(image),
                image=image,
                label=labels[i] if labels is not None else None,
                attributes=attributes[i] if attributes is not None else {},
                uri=uri_of(image),
            )
            for i, image in enumerate(sources)
        )
        outcomes = Outcomes()
        with bar(f"adding to {self.name}", len(sources), wanted=progress) as advance:
            async for outcome in self.upsert(items, skip_unchanged=skip_unchanged):
                outcomes.append(outcome)
                advance(1)
        return outcomes

    async def add_vectors(
        self,
        ids: Sequence[str],
        vectors: Any,
        *,
        labels: Sequence[str | None] | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        fingerprint: str = "",
        progress: bool | None = None,
    ) -> Outcomes:
        """Store vectors (n, dim) float32; return one outcome per vector, in order.

        `fingerprint` is that of the space they come from, as `embed` returned it; without it you
        vouch that they are of this collection's space.
        """
        array = np.asarray(vectors, dtype=np.float32)
        if array.ndim != 2:  # noqa: PLR2004  # a matrix
            raise InvalidArgument(f"vectors are an (n, dim) array; this one is {array.shape}")
        same_length(len(array), ids=ids, labels=labels, attributes=attributes)
        items = (
            NewItem(
                id=ids[i],
                vector=array[i],
                label=labels[i] if labels is not None else None,
                attributes=attributes[i] if attributes is not None else {},
            )
            for i in range(len(array))
        )
        outcomes = Outcomes()
        with bar(f"adding to {self.name}", len(array), wanted=progress) as advance:
            async for outcome in self.upsert(items, fingerprint=fingerprint):
                outcomes.append(outcome)
                advance(1)
        return outcomes

    async def upsert(
        self,
        items: Iterable[NewItem] | AsyncIterable[NewItem],
        *,
        skip_unchanged: bool = False,
        fingerprint: str = "",
    ) -> AsyncIterator[Outcome]:
        """Store items as they come; yield one outcome per item, in order, once it is durable.

        Reads `items` only as fast as the server takes them.
        """
        limits = await self._limits()

        def prepare(item: NewItem) -> tuple[cpb.UpsertItem | LikewiseError, str]:
            return upsert_message(item, limits)

        async def send(chunk: list[tuple[cpb.UpsertItem | LikewiseError, str]]) -> list[Outcome]:
            sound = [message for message, _ in chunk if isinstance(message, cpb.UpsertItem)]
            replies = iter(await self._upsert(sound, fingerprint, skip_unchanged=skip_unchanged))
            return [
                Outcome(item_id, "failed", message) if isinstance(message, LikewiseError) else next(replies)
                for message, item_id in chunk
            ]

        def clash(earlier: list[tuple[Any, str]], later: list[tuple[Any, str]]) -> bool:
            """Of an id given twice the later must win, so it is not sent while the earlier is under way."""
            return not {item_id for _, item_id in earlier}.isdisjoint(item_id for _, item_id in later)

        chunks = cut(prepared(items, prepare), upsert_weight, limits)
        async for _, outcomes in in_flight(chunks, send, self._window, clash):
            for outcome in outcomes:
                yield outcome

    async def _upsert(self, messages: list[cpb.UpsertItem], fingerprint: str, *, skip_unchanged: bool) -> list[Outcome]:
        if not messages:
            return []
        request = cpb.UpsertItemsRequest(
            collection=self.name,
            items=messages,
            request_id=uuid.uuid4().hex,
            fingerprint=fingerprint or self.fingerprint,
            skip_unchanged=skip_unchanged,
        )
        reply = await self._transport.exchange(self._items.UpsertItems, request)
        return [convert.outcome(result) for result in reply.results]

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Item | None]:
        """Return one item per id, in order, None where there is none."""
        wanted = [text(item_id, "id") for item_id in several(ids, "ids")]
        step = ids_per_message(await self._limits(), self.info.dim if vectors else 0)
        found: dict[str, Item] = {}
        start = 0
        while start < len(wanted):
            request = cpb.GetItemsRequest(collection=self.name, ids=wanted[start : start + step], with_vectors=vectors)
            try:
                reply = await self._transport.unary(self._items.GetItems, request)
            except OutOfRange:  # items with large attributes: fewer fit one message
                if step == 1:
                    raise
                step = max(1, step // 4)
                continue
            found.update((message.info.id, convert.item(message)) for message in reply.items)
            start += step
        return [found.get(item_id) for item_id in wanted]

    async def items(self, where: str = "", *, vectors: bool = False, page_size: int = 1000) -> AsyncIterator[Item]:
        """Yield all items, or those that match a filter, by id."""
        token = ""
        while True:
            request = cpb.ListItemsRequest(
                collection=self.name, where=where, page_size=page_size, page_token=token, with_vectors=vectors
            )
            reply = await self._transport.unary(self._items.ListItems, request)
            for message in reply.items:
                yield convert.item(message)
            token = reply.next_page_token
            if not token:
                return

    async def count(self, where: str = "") -> int:
        """Return the number of items, or of those that match."""
        request = cpb.CountItemsRequest(collection=self.name, where=where)
        return int((await self._transport.unary(self._items.CountItems, request)).count)

    async def delete(self, ids: Sequence[str] = (), *, where: str = "") -> int:
        """Delete items by id, or those that match a filter; return how many there were."""
        ids = [text(item_id, "id") for item_id in several(ids, "ids")]
        if bool(ids) == bool(where):
            raise InvalidArgument("say which items: either ids, or where")
        step = (await self._limits()).max_items
        deleted = 0
        for start in range(0, max(len(ids), 1), step):
            request = cpb.DeleteItemsRequest(
                collection=self.name, ids=ids[start : start + step], where=where, request_id=uuid.uuid4().hex
            )
            deleted += int((await self._transport.unary(self._items.DeleteItems, request)).deleted)
        return deleted

    async def check(self, *, repair: bool = False) -> CheckReport:
        """Verify checksums, counts and derived files; with `repair`, rebuild what is derived."""
        request = cpb.CheckCollectionRequest(collection=self.name, repair=repair)
        reply = await self._transport.unary(self._items.CheckCollection, request, timeout=LONG_S)
        return CheckReport(reply.items_checked, tuple(reply.problems), tuple(reply.repaired))

    # Export

    async def export(self, path: str | os.PathLike[str], *, where: str = "", progress: bool | None = None) -> int:
        """Write the items to `path`.parquet or .npy (vectors, with the rest beside it as .jsonl); return how many."""
        from likewise.export import writer_for  # noqa: PLC0415  # pyarrow only where it is wanted

        target = Path(path)
        total = await self.count(where)
        written = 0
        with writer_for(target, self.info) as write, bar(f"exporting {self.name}", total, wanted=progress) as advance:
            batch: list[Item] = []
            async for item in self.items(where, vectors=True):
                batch.append(item)
                if len(batch) >= 1000:  # noqa: PLR2004  # a page
                    write(batch)
                    advance(len(batch))
                    written += len(batch)
                    batch = []
            write(batch)
            advance(len(batch))
        return written + len(batch)
