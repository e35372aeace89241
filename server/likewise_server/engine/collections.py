"""Collections: images or vectors in, hits out; the store keeps them, the embedder makes their vectors."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.base import BackboneRef
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.precedence import Precedence
from likewise_server.engine.queries import check_space, collection_ref, external_fingerprint, space_of
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import InvalidArgument, LikewiseError
from likewise_server.store.types import Attributes, CollectionInfo, Item, Metric, NewItem, Outcome, Storage, Store


@dataclass(frozen=True, slots=True)
class Upsert:
    """One item to store: an encoded `image`, or a `vector` (dim,) float32."""

    id: str
    image: bytes | None = None
    vector: NDArray[np.float32] | None = None
    label: str | None = None
    attributes: Attributes = field(default_factory=dict)
    uri: str = ""
    content_hash: str = ""  # of a bare vector's source; computed here for images


@dataclass(slots=True)
class Upserted:
    """One outcome or error per item, in order."""

    outcomes: list[Outcome | LikewiseError]
    fingerprint: str
    timings: Timings


class Collections:
    """What can be done with collections."""

    def __init__(self, store: Store, embedder: Embedder, workers: Workers, precedence: Precedence) -> None:
        self.store = store
        self._precedence = precedence
        self._embedder = embedder
        self._workers = workers

    async def create(
        self,
        name: str,
        *,
        ref: BackboneRef | None = None,
        dim: int = 0,
        metric: Metric = "cosine",
        request_id: str = "",
        index: str = "auto",
        indexed: Sequence[str] = (),
        storage: Storage = "fp32",
    ) -> CollectionInfo:
        """Create a collection for a backbone's feature (the default one without `dim`), or of bare vectors.

        `index`, `indexed` and `storage` are those of `Store.create_collection`.
        """
        if dim:
            fingerprint, backbone = external_fingerprint(dim), ""
        else:
            space = await self._embedder.space(ref)
            dim, fingerprint, backbone = space.dim, space.fingerprint, str(space.backbone)
        return await self._workers.run(
            self.store.create_collection,
            name,
            dim=dim,
            metric=metric,
            fingerprint=fingerprint,
            backbone=backbone,
            request_id=request_id,
            index=index,
            indexed=indexed,
            storage=storage,
        )

    async def upsert(
        self,
        collection: str,
        items: Sequence[Upsert],
        *,
        fingerprint: str = "",
        skip_unchanged: bool = False,
        deadline: float | None = None,
        turn: asyncio.Event | None = None,
    ) -> Upserted:
        """Embed what are images and store all; returns when it is durable. Storing waits for `turn`.

        With `skip_unchanged`, an image whose bytes are stored already keeps its vector instead of
        running through the network again. Raises NotFound and FailedPrecondition for the whole call.
        """
        timings = Timings()
        info = await space_of(self.store, self._workers, collection)
        if any(item.vector is not None for item in items):
            check_space(info, fingerprint)
        outcomes: list[Outcome | LikewiseError | None] = [None] * len(items)
        hashes = await self._workers.run(_hashes, items)
        vectors: dict[int, NDArray[np.float32]] = {}
        if skip_unchanged:
            with timings.stage("store"):
                vectors = await self._workers.run(self._known_vectors, collection, items, hashes)
        fresh = {i: item.image for i, item in enumerate(items) if item.image is not None and i not in vectors}
        if fresh:
            ref = await collection_ref(self._embedder, info)
            embedded = await self._embedder.embed(list(fresh.values()), ref, deadline=deadline, wait=True)
            timings.absorb(embedded.timings)
            vectors.update({i: embedded.vectors[row] for row, i in enumerate(fresh) if row not in embedded.errors})
            for row, error in embedded.errors.items():
                outcomes[list(fresh)[row]] = error
        ready: list[int] = []
        new: list[NewItem] = []
        for i, item in enumerate(items):
            vector = vectors.get(i, item.vector)
            if outcomes[i] is not None:
                continue
            if vector is None:
                outcomes[i] = InvalidArgument("the item has neither an image nor a vector")
                continue
            ready.append(i)
            new.append(NewItem(item.id, vector, item.label, item.attributes, item.uri, hashes[i]))
        if turn is not None:
            await turn.wait()
        with timings.stage("store"):
            async with self._precedence.writing(len(new)):
                stored = await self._workers.run(self.store.upsert, collection, new, fingerprint=info.fingerprint)
        for i, outcome in zip(ready, stored, strict=True):
            outcomes[i] = outcome
        return Upserted([o for o in outcomes if o is not None], info.fingerprint, timings)

    async def breathe(self) -> None:
        """Let others have the event loop, between pieces of a large message."""
        await self._precedence.breathe()

    def _known_vectors(
        self, collection: str, items: Sequence[Upsert], hashes: Sequence[str]
    ) -> dict[int, NDArray[np.float32]]:
        """Return the stored vectors of those items whose image bytes have not changed, by position."""
        images = [i for i, item in enumerate(items) if item.image is not None and item.id]
        stored = self.store.get(collection, [items[i].id for i in images], vectors=True)
        return {
            i: was.vector
            for i, was in zip(images, stored, strict=True)
            if was is not None and was.vector is not None and was.content_hash == hashes[i]
        }

    async def get(self, collection: str, ids: Sequence[str], *, vectors: bool) -> tuple[list[Item | None], str]:
        """Return one item or None per id, in order, and the space's fingerprint."""
        info = await self._workers.run(self.store.get_collection, collection)
        return await self._workers.run(self.store.get, collection, ids, vectors=vectors), info.fingerprint

    async def list_items(
        self, collection: str, *, where: str, page_size: int, page_token: str, vectors: bool
    ) -> tuple[list[Item], str, str]:
        """Return a page of items, the next page's token ("" at the end), and the space's fingerprint."""
        info = await self._workers.run(self.store.get_collection, collection)
        items, token = await self._workers.run(
            self.store.list_items,
            collection,
            where=where,
            page_size=page_size,
            page_token=page_token,
            vectors=vectors,
        )
        return items, token, info.fingerprint

    async def delete(self, collection: str, ids: Sequence[str], where: str) -> int:
        """Delete by ids or by filter; refuses to delete everything by an empty request."""
        if bool(ids) == bool(where):
            raise InvalidArgument("say which items: either ids, or a filter")
        chosen = list(ids) if ids else None
        return await self._workers.run(self.store.delete, collection, chosen, where=where)


def _hashes(items: Sequence[Upsert]) -> list[str]:
    return [item.content_hash if item.image is None else hashlib.sha256(item.image).hexdigest() for item in items]
