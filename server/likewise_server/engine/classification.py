"""Heads of collections: queries in, predictions out, and how they do on labelled items."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from likewise_server.engine.embedding import Embedder
from likewise_server.engine.queries import Query, resolve
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import FailedPrecondition, LikewiseError, OutOfRange
from likewise_server.heads import Evaluation, Prediction, TrainedHead, evaluate
from likewise_server.store.types import CollectionInfo, HeadRow, Labelled, Store

CACHED_HEADS = 16
LARGEST_CONFUSION = 2000  # classes: 16 MB of counts in a reply


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


@dataclass(frozen=True, slots=True)
class Mistaken:
    """An item that was answered with a class that is not its label; `score` is the answer's probability."""

    id: str
    label: str
    answer: str
    score: float
    uri: str


@dataclass(slots=True)
class Evaluated:
    """How a head did on labelled items, the surest mistakes, and how many of the items it was trained on."""

    evaluation: Evaluation
    mistakes: list[Mistaken]
    training_items: int
    stored: StoredHead
    timings: Timings


class Heads:
    """What can be done with heads that are there; see `engine.training` for making them."""

    def __init__(self, store: Store, embedder: Embedder, workers: Workers, fits: Workers) -> None:
        self.store = store
        self._embedder = embedder
        self._workers = workers
        self._fits = fits
        self._cache: OrderedDict[tuple[str, str, int, float], TrainedHead] = OrderedDict()

    async def get(self, collection: str, name: str, version: int = 0) -> StoredHead:
        """Return a head, the latest version by default. Raises NotFound, FailedPrecondition for another space."""
        return await self._workers.run(self._load, collection, name, version)

    def _load(self, collection: str, name: str, version: int) -> StoredHead:
        return self.restored(self.store.get_head(collection, name, version), self.store.get_collection(collection))

    def restored(self, row: HeadRow, info: CollectionInfo) -> StoredHead:
        """Return the head in a row of this collection. Raises FailedPrecondition for another space."""
        if row.meta["fingerprint"] != info.fingerprint:
            raise FailedPrecondition(
                f"head {row.name!r} was trained in space {row.meta['fingerprint']}, "
                f"{info.name!r} is of space {info.fingerprint}: train it again"
            )
        key = (info.name, row.name, row.version, row.created_at)
        head = self._cache.get(key)
        if head is None:
            head = TrainedHead.from_bytes(row.blob, row.meta["head"])
            self._cache[key] = head
            while len(self._cache) > CACHED_HEADS:
                self._cache.popitem(last=False)
        return StoredHead(row, head, info)

    async def list(
        self, collection: str, *, page_size: int, page_token: str
    ) -> tuple[CollectionInfo, Sequence[HeadRow], str]:
        """Return the collection, a page of its head versions without their arrays, and the next page's token, or ""."""

        def read() -> tuple[CollectionInfo, Sequence[HeadRow], str]:
            rows, token = self.store.list_heads(collection, page_size=page_size, page_token=page_token)
            return self.store.get_collection(collection), rows, token

        return await self._workers.run(read)

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
        with timings.stage("store"):
            mistakes = await self._workers.run(_mistaken, self.store, target.name, evaluation, data)
        trained_on = set(stored.head.example_ids) if target.name == collection else set()
        return Evaluated(evaluation, mistakes, sum(i in trained_on for i in data.ids), stored, timings)


def _mistaken(store: Store, collection: str, evaluation: Evaluation, data: Labelled) -> list[Mistaken]:
    items = store.get(collection, [data.ids[mistake.row] for mistake in evaluation.mistakes])
    return [
        Mistaken(data.ids[m.row], data.labels[m.row], m.answer, m.score, item.uri if item else "")
        for m, item in zip(evaluation.mistakes, items, strict=True)
    ]
