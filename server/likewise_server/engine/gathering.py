"""What heads are trained on: stored items that have a label, and examples that are not stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.engine.embedding import Embedder
from likewise_server.engine.queries import check_space, collection_ref
from likewise_server.engine.timings import Timings
from likewise_server.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise_server.images import Views
from likewise_server.store.types import CollectionInfo, Store

NAMED = 5  # ids that an error lists


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled image, or vector (dim,) float32, to train on that is not stored."""

    label: str
    id: str = ""
    image: bytes | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples that are not stored, the fingerprint of the vectors and the `views` of the images among them."""

    examples: Sequence[Example] = ()
    fingerprint: str = ""
    views: Views = ""


@dataclass(slots=True)
class TrainingSet:
    """Labelled vectors, each (dim,) float32, and where they came from."""

    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, item_id: str, label: str, content_hash: str, vector: NDArray[np.float32]) -> None:
        """Add one row."""
        self.ids.append(item_id)
        self.labels.append(label)
        self.hashes.append(content_hash)
        self.vectors.append(vector)

    def matrix(self, dim: int) -> NDArray[np.float32]:
        """Return the vectors as (n, dim) float32."""
        return np.stack(self.vectors) if self.vectors else np.zeros((0, dim), np.float32)


def matching(store: Store, collection: str, where: str) -> TrainingSet:
    """Return the labelled items that match, all of them for an empty `where`."""
    stored = store.labelled(collection, where=where)
    return TrainingSet(list(stored.ids), list(stored.labels), list(stored.content_hashes), list(stored.vectors))


def add_items(data: TrainingSet, store: Store, collection: str, ids: Sequence[str]) -> None:
    """Add the items with these ids, those that are not there yet.

    Raises NotFound and FailedPrecondition that name those that do not exist or have no label.
    """
    there = set(data.ids)
    wanted = [item_id for item_id in dict.fromkeys(ids) if item_id not in there]
    missing, bare = list[str](), list[str]()
    for item_id, item in zip(wanted, store.get(collection, wanted, vectors=True), strict=True):
        if item is None or item.vector is None:
            missing.append(item_id)
        elif item.label is None:
            bare.append(item_id)
        else:
            data.add(item.id, item.label, item.content_hash, item.vector)
    if missing:
        raise NotFound(f"no such items in {collection!r}: {_named(missing)}; leave them out, or add them first")
    if bare:
        raise FailedPrecondition(
            f"items of {collection!r} without a label: {_named(bare)}; label them, or leave them out"
        )


async def add_examples(
    data: TrainingSet,
    given: Examples,
    info: CollectionInfo,
    *,
    prefix: str,
    embedder: Embedder,
    timings: Timings,
    deadline: float | None,
) -> None:
    """Add examples, those without an id under `prefix` and their number.

    Raises InvalidArgument for an image that cannot be read and an example that holds nothing, FailedPrecondition for
    vectors of another space or dimension.
    """
    images = [example.image for example in given.examples if example.image is not None]
    embedded: Iterator[NDArray[np.float32]] = iter(())
    if given.views and not images:
        raise InvalidArgument("views are looks at images, and no example has one: leave views out")
    if images:
        ref = await collection_ref(embedder, info)
        result = await embedder.embed(images, ref, deadline=deadline, wait=True, views=given.views)
        timings.absorb(result.timings)
        for index, error in result.errors.items():
            raise InvalidArgument(f"training image {index}: {error.message}")
        embedded = iter(result.vectors)
    for number, example in enumerate(given.examples):
        vector = next(embedded) if example.image is not None else example.vector
        if vector is None:
            raise InvalidArgument(f"example {number} has neither an image nor a vector")
        if example.vector is not None:
            check_space(info, given.fingerprint)
        if vector.shape != (info.dim,):
            raise FailedPrecondition(f"example {number} has {vector.shape[0]} numbers, {info.name!r} has {info.dim}")
        # Vectors of one picture may differ in their last bits, from one batch to another.
        content_hash = "" if example.image is None else hashlib.sha256(example.image).hexdigest()
        data.add(example.id or f"{prefix}:{number}", example.label, content_hash, vector)


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(map(repr, ids[:NAMED])) + more
