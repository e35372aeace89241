"""One query out of several examples of what is wanted, and of what is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likewise_server.engine.queries import ByIds, ByImages, ByVectors, Query, Resolved
from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError
from likewise_server.store.types import CollectionSpace, Metric

POSITIVE, NEGATIVE = 2.0, 1.0  # weights of the two means; see `rocchio`


@dataclass(frozen=True, slots=True)
class ExampleRef:
    """One example: an encoded `image`, a `vector` (dim,) float32, or the `id` of a stored item."""

    image: bytes | None = None
    vector: NDArray[np.float32] | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class ByExamples:
    """Examples of what is wanted and of what is not. `fingerprint` is that of their vectors' space."""

    positive: Sequence[ExampleRef]
    negative: Sequence[ExampleRef] = ()
    fingerprint: str = ""

    @property
    def ids(self) -> list[str]:
        """The stored items among them, which are no hits."""
        return [example.id for example in (*self.positive, *self.negative) if example.id]


def rocchio(positive: NDArray[np.float32], negative: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return one query, (dim,) float32, from examples (p, dim), p >= 1, and counterexamples (n, dim).

    J. J. Rocchio, "Relevance feedback in information retrieval", in G. Salton (ed.), The SMART Retrieval System,
    1971: query + beta mean(positive) - gamma mean(negative), all weights 1. The mean of the positives stands in for
    the query that nobody gave, which makes 2 mean(positive) - mean(negative), or mean(positive) without negatives.
    For cosine every vector is brought to length 1 first: else the longest would decide.

    Raises InvalidArgument where nothing is left of the direction that cosine needs.
    """
    if metric == "cosine":
        positive, negative = _directions(positive), _directions(negative)
    mean = positive.mean(axis=0, dtype=np.float64)
    if len(negative):
        mean = POSITIVE * mean - NEGATIVE * negative.mean(axis=0, dtype=np.float64)
    if metric == "cosine" and np.linalg.norm(mean) < 1e-6:  # noqa: PLR2004  # rounding of vectors of length 1
        raise InvalidArgument("the examples cancel each other out: leave out some that are opposite to others")
    query: NDArray[np.float32] = mean.astype(np.float32)
    return query


async def combined(
    query: ByExamples, info: CollectionSpace, resolved: Callable[[Query], Awaitable[Resolved]]
) -> Resolved:
    """Return the one vector of the examples, (1, dim); what is wrong with one of them is the error of all.

    Raises InvalidArgument where there is no positive example or one is empty, and what `resolved` raises.
    """
    if not query.positive:
        raise InvalidArgument("there is no positive example: give at least one of what the hits should be like")
    examples = [*query.positive, *query.negative]
    names = [f"positive example {i}" for i in range(len(query.positive))]
    names += [f"negative example {i}" for i in range(len(query.negative))]
    for name, example in zip(names, examples, strict=True):
        if example.vector is not None and len(example.vector) != info.dim:
            raise FailedPrecondition(
                f"{name} has {len(example.vector)} numbers, the vectors of {info.name!r} have {info.dim}"
            )
        if example.image is None and example.vector is None and not example.id:
            raise InvalidArgument(f"{name} is empty: give an image, a vector or the id of an item")
    parts: dict[type[Query], list[int]] = {}
    for i, example in enumerate(examples):
        kind = ByImages if example.image is not None else ByVectors if example.vector is not None else ByIds
        parts.setdefault(kind, []).append(i)
    vectors = np.zeros((len(examples), info.dim), np.float32)
    for kind, places in parts.items():
        found = await resolved(_asked(kind, [examples[i] for i in places], query.fingerprint))
        if found.errors:
            place, error = min(found.errors.items())
            return Resolved(vectors[:1], {0: _named(error, names[places[place]])})
        vectors[places] = found.vectors
    count = len(query.positive)
    return Resolved(rocchio(vectors[:count], vectors[count:], info.metric)[None])


def _asked(kind: type[Query], examples: Sequence[ExampleRef], fingerprint: str) -> Query:
    if kind is ByImages:
        return ByImages([example.image for example in examples if example.image is not None])
    if kind is ByVectors:
        return ByVectors(np.stack([e.vector for e in examples if e.vector is not None]), fingerprint)
    return ByIds([example.id for example in examples])


def _named(error: LikewiseError, name: str) -> LikewiseError:
    return type(error)(f"{name}: {error.message}", retry_after_s=error.retry_after_s)


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    directions: NDArray[np.float32] = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return directions
