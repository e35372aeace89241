"""What callers ask with: images, vectors or ids of stored items, made into vectors of one collection's space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.base import BackboneRef
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError, NotFound
from likewise_server.images import Views
from likewise_server.store.types import CollectionSpace, Store


@dataclass(frozen=True, slots=True)
class ByImages:
    """Encoded images, and how many looks at each make its vector."""

    images: Sequence[bytes]
    views: Views = ""


@dataclass(frozen=True, slots=True)
class ByVectors:
    """Vectors (n, dim) float32 of the space with `fingerprint`."""

    vectors: NDArray[np.float32]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ByIds:
    """Ids of items in the collection asked."""

    ids: Sequence[str]


Query = ByImages | ByVectors | ByIds


@dataclass(slots=True)
class Resolved:
    """`vectors` (n, dim) float32, one row per query; rows whose index is in `errors` mean nothing."""

    vectors: NDArray[np.float32]
    errors: dict[int, LikewiseError] = field(default_factory=dict)

    @property
    def usable(self) -> list[int]:
        """Indices of the queries that have a vector."""
        return [i for i in range(len(self.vectors)) if i not in self.errors]


def external_fingerprint(dim: int) -> str:
    """Return the fingerprint of vectors from elsewhere, of which only the dimension is known."""
    return f"external:{dim}"


async def space_of(store: Store, workers: Workers, collection: str) -> CollectionSpace:
    """Return what never changes of a collection, with no trip to a thread where it is known. Raises NotFound."""
    known = store.known_space(collection)
    return known if known is not None else await workers.run(store.space_of, collection)


def check_space(info: CollectionSpace, fingerprint: str) -> None:
    """Raise FailedPrecondition unless `fingerprint` is the collection's; vectors from elsewhere need none."""
    if not fingerprint and info.backbone:
        raise FailedPrecondition(
            f"vectors for {info.name!r} need the fingerprint of their space (this collection's is "
            f"{info.fingerprint}): send the one that came with them"
        )
    if fingerprint and fingerprint != info.fingerprint:
        raise FailedPrecondition(
            f"these vectors are of space {fingerprint}, collection {info.name!r} is of space {info.fingerprint}: "
            "they cannot be compared; embed the images again with this collection's backbone"
        )


async def collection_ref(embedder: Embedder, info: CollectionSpace) -> BackboneRef:
    """Return the feature that images for this collection go through, after checking that it is still the same space.

    Raises FailedPrecondition for a collection without a backbone, one whose backbone is not served,
    or whose backbone makes another space now than when the collection was made.
    """
    if not info.backbone:
        raise FailedPrecondition(f"{info.name!r} holds vectors from elsewhere: send vectors of {info.dim} numbers")
    ref = BackboneRef.parse(info.backbone)
    try:
        space = await embedder.space(ref)
    except NotFound as error:
        raise FailedPrecondition(f"{info.name!r} was made with {ref}. {error.message}") from error
    if space.fingerprint != info.fingerprint:
        raise FailedPrecondition(
            f"{info.name!r} is of space {info.fingerprint}, but {ref} now makes {space.fingerprint}: its weights, "
            "precision or preprocessing changed. Restart with the earlier ones, or index into a new collection"
        )
    return ref


async def resolve(
    query: Query,
    info: CollectionSpace,
    *,
    embedder: Embedder,
    store: Store,
    workers: Workers,
    timings: Timings,
    deadline: float | None,
    directions: bool = False,
) -> Resolved:
    """Return one vector per query. Problems of one query are its own entry in `errors`.

    With `directions` a zero vector is such a problem whatever the collection's metric.
    """
    if isinstance(query, ByImages):
        ref = await collection_ref(embedder, info)
        embedded = await embedder.embed(query.images, ref, deadline=deadline, views=query.views)
        timings.absorb(embedded.timings)
        return Resolved(embedded.vectors, embedded.errors)
    if isinstance(query, ByVectors):
        check_space(info, query.fingerprint)
        return _checked(query.vectors, info, directions=directions)
    with timings.stage("store"):
        items = await workers.run(store.get, info.name, query.ids, vectors=True)
    vectors = np.zeros((len(items), info.dim), np.float32)
    errors: dict[int, LikewiseError] = {}
    for index, item in enumerate(items):
        if item is None or item.vector is None:
            errors[index] = NotFound(f"no item {query.ids[index]!r} in {info.name!r}")
        else:
            vectors[index] = item.vector
    return Resolved(vectors, errors)


def _checked(vectors: NDArray[np.float32], info: CollectionSpace, *, directions: bool) -> Resolved:
    if vectors.ndim != 2 or vectors.shape[1] != info.dim:  # noqa: PLR2004  # a matrix
        raise FailedPrecondition(
            f"these vectors have {vectors.shape[-1]} numbers, those of {info.name!r} have {info.dim}"
        )
    errors: dict[int, LikewiseError] = {}
    # Squares of larger numbers leave the range of float32.
    finite = np.asarray((np.abs(vectors) < 1e15).all(axis=1))  # noqa: PLR2004
    for index in np.flatnonzero(~finite):
        errors[int(index)] = InvalidArgument("the vector has NaN, infinite or enormous values")
    if info.metric == "cosine" or directions:
        norms = np.linalg.norm(np.where(finite[:, None], vectors, 0).astype(np.float64), axis=1)
        for index in np.flatnonzero(finite & (norms < np.finfo(np.float32).tiny)):  # as the store has it
            errors[int(index)] = InvalidArgument("the vector is zero: it has no direction to compare by cosine")
    return Resolved(vectors, errors)
