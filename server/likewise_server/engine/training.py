"""Training: labelled items and examples in, the next version of a head in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likewise_server import heads
from likewise_server.backbones.base import BackboneRef
from likewise_server.engine import joined
from likewise_server.engine.classification import Heads, StoredHead
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.gathering import Examples, TrainingSet, add_examples, add_items, matching
from likewise_server.engine.queries import collection_ref
from likewise_server.engine.sources import Adaptation, train_adapted
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_server.store.types import CollectionInfo, Store

NONE_GIVEN = Examples()


class Training:
    """Makes heads."""

    def __init__(self, made: Heads, store: Store, embedder: Embedder, workers: Workers, fits: Workers) -> None:
        self._made = made
        self._store = store
        self._embedder = embedder
        self._workers = workers
        self._fits = fits
        self._updates: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def train(
        self,
        collection: str,
        name: str,
        *,
        kind: str = "auto",
        options: Mapping[str, Any] | None = None,
        where: str = "",
        ids: Sequence[str] = (),
        given: Examples = NONE_GIVEN,
        examples_only: bool = False,
        adaptation: Adaptation | None = None,
        request_id: str = "",
        deadline: float | None = None,
    ) -> tuple[StoredHead, Timings]:
        """Fit a head and store it as the next version; the same `request_id` again gives the version made before.

        It is trained on the collection's labelled items, those that match `where` or those with these `ids`, unless
        `examples_only`; and on the examples `given`. Raises NotFound and FailedPrecondition that name the
        ids that are not there or have no label, and FailedPrecondition where there is nothing to train on.
        With an `adaptation` see also `train_adapted`. An ensemble on joined backbones needs them to be served.
        """
        timings = Timings()
        info = await self._workers.run(self._store.get_collection, collection)
        if earlier := await self._of_request(info, name, request_id):
            return earlier, timings
        if ids and (where or examples_only):
            raise InvalidArgument(f"ids and {'where' if where else 'examples_only'} exclude each other: give one")
        data = TrainingSet()
        with timings.stage("store"):
            if ids:
                await self._workers.run(add_items, data, self._store, collection, ids)
            elif not examples_only:
                data = await self._workers.run(matching, self._store, collection, where)
        await self._add_examples(data, given, info, "example", timings, deadline)
        if not data.vectors:
            raise FailedPrecondition(
                f"{collection!r} has no labelled items{' that match' if where else ''}: "
                "add items with labels, or give examples"
            )
        with timings.stage("store"):
            mean = await self._workers.run(self._store.mean_vector, collection)
        blocks = await self._blocks(info) if kind == "ensemble" else ()

        def fit(vectors: ArrayLike, pool_mean: ArrayLike | None) -> heads.TrainedHead:
            return heads.train(
                vectors,
                data.labels,
                data.ids,
                kind=kind or "auto",
                options=options or {},
                pool_mean=pool_mean,
                content_hashes=data.hashes,
                blocks=blocks,
            )

        extra: dict[str, Any] = {"options": dict(options or {})}
        pool_mean = mean if np.any(mean) else None
        with timings.stage("head"):
            if adaptation is None:
                head = await self._fits.run(fit, data.matrix(info.dim), pool_mean)
            else:
                head, extra["adaptation"] = await self._fits.run(
                    train_adapted,
                    self._store,
                    info,
                    adaptation,
                    data.matrix(info.dim),
                    data.ids,
                    fit,
                    pool_mean,
                    deadline,
                )
        return await self._save(info, name, head, extra, request_id, timings), timings

    async def update(
        self,
        collection: str,
        name: str,
        *,
        version: int = 0,
        where: str = "",
        add_ids: Sequence[str] = (),
        given: Examples = NONE_GIVEN,
        remove_ids: Sequence[str] = (),
        request_id: str = "",
        deadline: float | None = None,
    ) -> tuple[StoredHead, Timings]:
        """Store the next version of a head: `version`, the latest by default, with examples added and removed.

        Added are the labelled items that match `where`, those with `add_ids` and the examples `given`; an id that
        the head has is replaced. The result is what training on the changed set gives, see `heads.update` for what
        that raises. Raises InvalidArgument where there is nothing to do, FailedPrecondition for a head that was
        adapted to another domain, and what `train` raises for ids.
        """
        if not (where or add_ids or given.examples or remove_ids):
            raise InvalidArgument("nothing to add or remove: give where, add_ids, examples or remove_ids")
        timings = Timings()
        info = await self._workers.run(self._store.get_collection, collection)
        # One after the other: of two that began with the same version the later would undo the earlier.
        async with self._updates.setdefault((collection, name), asyncio.Lock()):
            if earlier := await self._of_request(info, name, request_id):
                return earlier, timings
            start = await self._made.get(collection, name, version)
            if start.row.meta.get("adaptation"):
                raise FailedPrecondition(
                    f"head {name!r} v{start.row.version} was adapted to other pictures, which needs all examples at "
                    "once: train it again on the changed set"
                )
            data = TrainingSet()
            with timings.stage("store"):
                if where:
                    data = await self._workers.run(matching, self._store, collection, where)
                await self._workers.run(add_items, data, self._store, collection, add_ids)
            # A prefix that no earlier version of this head has given its examples.
            await self._add_examples(data, given, info, f"example:{start.row.version}", timings, deadline)
            with timings.stage("store"):
                removed = await self._workers.run(self._not_held, start, {*remove_ids, *data.ids})
            with timings.stage("head"):
                head = await self._fits.run(
                    heads.update,
                    start.head,
                    data.matrix(info.dim),
                    data.labels,
                    data.ids,
                    remove=list(dict.fromkeys(remove_ids)),
                    removed=removed,
                    content_hashes=data.hashes,
                )
            extra = {"options": start.row.meta.get("options", {}), "updated_from": start.row.version}
            return await self._save(info, name, head, extra, request_id, timings), timings

    async def _blocks(self, info: CollectionInfo) -> tuple[int, ...]:
        """Return how many numbers of a vector are each backbone's where several are joined, () for one.

        Raises FailedPrecondition where one of them is not served, or no longer makes the collection's space.
        """
        if not joined.is_joined(BackboneRef.parse(info.backbone)):
            return ()
        return await self._embedder.blocks(await collection_ref(self._embedder, info))

    async def _of_request(self, info: CollectionInfo, name: str, request_id: str) -> StoredHead | None:
        row = await self._workers.run(self._store.head_of_request, info.name, name, request_id)
        return await self._workers.run(self._made.restored, row, info) if row else None

    async def _add_examples(
        self,
        data: TrainingSet,
        given: Examples,
        info: CollectionInfo,
        prefix: str,
        timings: Timings,
        deadline: float | None,
    ) -> None:
        await add_examples(
            data, given, info, prefix=prefix, embedder=self._embedder, timings=timings, deadline=deadline
        )

    def _not_held(self, start: StoredHead, ids: set[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors (dim,) of those examples that the head does not hold itself and the store does."""
        wanted = [i for i in set(start.head.example_ids) - set(start.head.support_ids) if i in ids]
        items = self._store.get(start.info.name, wanted, vectors=True)
        return {item.id: item.vector for item in items if item is not None and item.vector is not None}

    async def _save(
        self,
        info: CollectionInfo,
        name: str,
        head: heads.TrainedHead,
        extra: Mapping[str, Any],
        request_id: str,
        timings: Timings,
    ) -> StoredHead:
        """Store a head and return what is stored: of two requests with one id, what the first one made."""
        meta = {"head": head.meta(), "fingerprint": info.fingerprint, **extra}
        blob = await self._workers.run(head.to_bytes)
        with timings.stage("store"):
            row = await self._workers.run(
                self._store.save_head, info.name, name, head.kind, meta, blob, request_id=request_id
            )
        return await self._workers.run(self._made.restored, row, info)
