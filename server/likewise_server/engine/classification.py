"""Heads on collections: labelled items in, a versioned head in the store; queries in, predictions out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise_server.engine.embedding import Embedder
from likewise_server.engine.queries import Query, check_space, collection_ref, resolve
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError, OutOfRange
from likewise_server.heads import Evaluation, Prediction, TrainedHead, evaluate, train
from likewise_server.store.types import CollectionInfo, HeadRow, Labelled, Store

CACHED_HEADS = 16
LARGEST_CONFUSION = 2000  # classes: 16 MB of counts in a reply


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled image, or vector (dim,) float32, to train on that is not stored."""

    label: str
    id: str = ""
    image: bytes | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(slots=True)
class StoredHead:
    """A head's row, the head itself, and the collection it belongs to."""

    row: HeadRow
    head: TrainedHead
    info: CollectionInfo


@dataclass(slots=True)
class Classified:
    """One prediction or error per query, in order."""

    predictions: list[Prediction | LikewiseError]
    stored: StoredHead
    timings: Timings


@dataclass(slots=True)
class Evaluated:
    """How a head did on labelled items, and how many of them it was trained on."""

    evaluation: Evaluation
    training_items: int
    stored: StoredHead
    timings: Timings


@dataclass(slots=True)
class TrainingSet:
    """Labelled vectors (n, dim) float32 and where they came from."""

    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)


class Heads:
    """What can be done with heads."""

    def __init__(self, store: Store, embedder: Embedder, workers: Workers, fits: Workers) -> None:
        self.store = store
        self._embedder = embedder
        self._workers = workers
        self._fits = fits
        self._cache: OrderedDict[tuple[str, str, int, float], TrainedHead] = OrderedDict()

    async def train(
        self,
        collection: str,
        name: str,
        *,
        kind: str = "auto",
        options: Mapping[str, Any] | None = None,
        where: str = "",
        examples: Sequence[Example] = (),
        examples_only: bool = False,
        fingerprint: str = "",
        request_id: str = "",
        deadline: float | None = None,
    ) -> tuple[StoredHead, Timings]:
        """Fit a head on the collection's labelled items and on `examples`, and store it as the next version."""
        timings = Timings()
        info = await self._workers.run(self.store.get_collection, collection)
        data = TrainingSet()
        if not examples_only:
            with timings.stage("store"):
                stored: Labelled = await self._workers.run(self.store.labelled, collection, where=where)
            data = TrainingSet(list(stored.ids), list(stored.labels), list(stored.content_hashes), list(stored.vectors))
        await self._add_examples(data, examples, info, fingerprint, timings, deadline)
        if not data.vectors:
            raise FailedPrecondition(
                f"{collection!r} has no labelled items{' that match' if where else ''}: "
                "add items with labels, or give examples"
            )
        with timings.stage("store"):
            mean = await self._workers.run(self.store.mean_vector, collection)
        with timings.stage("head"):
            head = await self._fits.run(
                train,
                np.stack(data.vectors),
                data.labels,
                data.ids,
                kind=kind or "auto",
                options=options or {},
                pool_mean=mean if np.any(mean) else None,
                content_hashes=data.hashes,
            )
        meta = {"head": head.meta(), "fingerprint": info.fingerprint, "options": dict(options or {})}
        blob = await self._workers.run(head.to_bytes)
        with timings.stage("store"):
            row = await self._workers.run(
                self.store.save_head, collection, name, head.kind, meta, blob, request_id=request_id
            )
        return StoredHead(row, head, info), timings

    async def _add_examples(
        self,
        data: TrainingSet,
        examples: Sequence[Example],
        info: CollectionInfo,
        fingerprint: str,
        timings: Timings,
        deadline: float | None,
    ) -> None:
        images = [example.image for example in examples if example.image is not None]
        embedded: Iterator[NDArray[np.float32]] = iter(())
        if images:
            ref = await collection_ref(self._embedder, info)
            result = await self._embedder.embed(images, ref, deadline=deadline, wait=True)
            timings.absorb(result.timings)
            for index, error in result.errors.items():
                raise InvalidArgument(f"training image {index}: {error.message}")
            embedded = iter(result.vectors)
        for number, example in enumerate(examples):
            vector = next(embedded) if example.image is not None else example.vector
            if vector is None:
                raise InvalidArgument(f"example {number} has neither an image nor a vector")
            if example.vector is not None:
                check_space(info, fingerprint)
            if vector.shape != (info.dim,):
                raise FailedPrecondition(
                    f"example {number} has {vector.shape[0]} numbers, {info.name!r} has {info.dim}"
                )
            data.ids.append(example.id or f"example:{number}")
            data.labels.append(example.label)
            data.hashes.append("")
            data.vectors.append(vector)

    async def get(self, collection: str, name: str, version: int = 0) -> StoredHead:
        """Return a head, the latest version by default. Raises NotFound, FailedPrecondition for another space."""
        return await self._workers.run(self._load, collection, name, version)

    def _load(self, collection: str, name: str, version: int) -> StoredHead:
        info = self.store.get_collection(collection)
        row = self.store.get_head(collection, name, version)
        if row.meta["fingerprint"] != info.fingerprint:
            raise FailedPrecondition(
                f"head {name!r} was trained in space {row.meta['fingerprint']}, "
                f"{collection!r} is of space {info.fingerprint}: train it again"
            )
        key = (collection, name, row.version, row.created_at)
        head = self._cache.get(key)
        if head is None:
            head = TrainedHead.from_bytes(row.blob, row.meta["head"])
            self._cache[key] = head
            while len(self._cache) > CACHED_HEADS:
                self._cache.popitem(last=False)
        return StoredHead(row, head, info)

    async def list(self, collection: str, *, page_size: int, page_token: str) -> tuple[list[StoredHead], str]:
        """Return a page of head versions and the token of the next page, "" at the end."""

        def load() -> tuple[list[StoredHead], str]:
            rows, token = self.store.list_heads(collection, page_size=page_size, page_token=page_token)
            return [self._load(collection, row.name, row.version) for row in rows], token

        return await self._workers.run(load)

    async def delete(self, collection: str, name: str, version: int = 0) -> None:
        """Delete one version, or all of them. Raises NotFound."""
        await self._workers.run(self.store.delete_head, collection, name, version)

    async def classify(
        self,
        collection: str,
        name: str,
        query: Query,
        *,
        version: int = 0,
        reject: bool = True,
        neighbours: int = 0,
        deadline: float | None = None,
    ) -> Classified:
        """Return a prediction per query; problems of one query are its own entry."""
        timings = Timings()
        stored = await self.get(collection, name, version)
        resolved = await resolve(
            query,
            stored.info,
            embedder=self._embedder,
            store=self.store,
            workers=self._workers,
            timings=timings,
            deadline=deadline,
            directions=True,
        )
        usable = resolved.usable
        answers: list[Prediction] = []
        if usable:
            with timings.stage("head"):
                answers = await self._workers.run(
                    stored.head.predict, resolved.vectors[usable], reject=reject, neighbours=neighbours
                )
        by_index: dict[int, Prediction | LikewiseError] = dict(resolved.errors)
        by_index.update(zip(usable, answers, strict=True))
        return Classified([by_index[i] for i in range(len(resolved.vectors))], stored, timings)

    async def evaluate(
        self, collection: str, name: str, *, version: int = 0, on: str = "", where: str = ""
    ) -> Evaluated:
        """Measure a head on the labelled items of a collection of the same space."""
        timings = Timings()
        stored = await self.get(collection, name, version)
        target = await self._workers.run(self.store.get_collection, on or collection)
        if target.fingerprint != stored.info.fingerprint:
            raise FailedPrecondition(
                f"{target.name!r} is of space {target.fingerprint}, head {name!r} of space {stored.info.fingerprint}"
            )
        with timings.stage("store"):
            data: Labelled = await self._workers.run(self.store.labelled, target.name, where=where)
        if not data.ids:
            raise FailedPrecondition(f"{target.name!r} has no labelled items that match: nothing to measure on")
        if len(stored.head.classes) > LARGEST_CONFUSION:
            raise OutOfRange(
                f"head {name!r} has {len(stored.head.classes)} classes; a confusion matrix is given up to "
                f"{LARGEST_CONFUSION}: classify the items and compare the labels yourself"
            )
        with timings.stage("head"):
            evaluation = await self._fits.run(evaluate, stored.head, data.vectors, data.labels)
        trained_on = set(stored.head.support_ids) if target.name == collection else set()
        return Evaluated(evaluation, sum(i in trained_on for i in data.ids), stored, timings)
