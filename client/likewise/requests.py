"""Out of what people give, the messages that a collection is asked with."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from likewise import convert
from likewise.chunks import cut, in_flight, prepared
from likewise.errors import InvalidArgument, LikewiseError
from likewise.images import ImageLike, encoded
from likewise.results import Float32, Limits
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb

if TYPE_CHECKING:
    from likewise.collection import NewItem

QueryValue: TypeAlias = bytes | str | Float32
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Queries:
    """Images, rows of vectors, or ids to ask with, and how one is made ready for the wire."""

    sources: Sequence[Any] | Float32
    prepare: Callable[[Any], QueryValue | LikewiseError]


def queries(images: Sequence[ImageLike] | None, vectors: Any, ids: Sequence[str] | None, limits: Limits) -> Queries:
    """Return the queries given. Raises InvalidArgument unless exactly one kind is."""
    if sum(given is not None for given in (images, vectors, ids)) != 1:
        raise InvalidArgument("give one of: images, vectors=, ids=")
    if images is not None:
        return Queries(_several(images, "images"), lambda image: encoded(image, limits.max_image_bytes))
    if ids is not None:
        return Queries(_several(ids, "ids"), str)
    try:
        matrix = np.asarray(vectors, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"vectors are an (n, dim) array of numbers: {error}") from error
    if matrix.ndim != 2:  # noqa: PLR2004  # a matrix
        raise InvalidArgument(f"vectors are an (n, dim) array; this one is {matrix.shape}")
    return Queries(matrix, lambda row: row)


def _several(values: Sequence[Any], what: str) -> Sequence[Any]:
    if isinstance(values, (str, bytes)):
        raise InvalidArgument(f"{what} is a list: put the one you have in brackets")
    return values


def query_fields(chunk: Sequence[QueryValue], fingerprint: str) -> dict[str, Any]:
    """Return the fields of SearchRequest and ClassifyRequest that hold a chunk of queries of one kind."""
    first = chunk[0]
    if isinstance(first, bytes):
        return {"images": pb.ImageList(images=[pb.Image(data=value) for value in chunk if isinstance(value, bytes)])}
    if isinstance(first, str):
        return {"ids": pb.IdList(ids=[value for value in chunk if isinstance(value, str)])}
    return {"vectors": convert.matrix_message(np.stack(chunk)), "fingerprint": fingerprint}


async def ask_all(
    given: Queries,
    limits: Limits,
    ask: Callable[[list[QueryValue]], Awaitable[list[R]]],
    failed: Callable[[LikewiseError], R],
    window: int,
) -> list[R]:
    """Return ask()'s answer to each query, in order, or failed(error) for one that could not be read."""

    async def answers(chunk: list[QueryValue | LikewiseError]) -> list[R]:
        sound = [value for value in chunk if not isinstance(value, LikewiseError)]
        replies = iter(await ask(sound) if sound else [])
        return [failed(value) if isinstance(value, LikewiseError) else next(replies) for value in chunk]

    results: list[R] = []
    chunks = cut(prepared(given.sources, given.prepare), _query_weight, limits)
    async for _, part in in_flight(chunks, answers, window):
        results += part
    return results


def _query_weight(value: QueryValue | LikewiseError) -> int:
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return len(value) + 16 if isinstance(value, (bytes, str)) else 0


def upsert_message(item: NewItem, limits: Limits) -> tuple[cpb.UpsertItem | LikewiseError, str]:
    """Return the message of an item, or what is wrong with it, and its id."""
    item_id = item.id
    try:
        message = cpb.UpsertItem()
        if item.image is not None:
            data = encoded(item.image, limits.max_image_bytes)
            if isinstance(data, LikewiseError):
                return data, item_id
            message.image.data = data
            item_id = item_id or hashlib.sha256(data).hexdigest()
        elif item.vector is not None:
            message.vector = np.asarray(item.vector, dtype="<f4").tobytes()
        message.info.id = item_id
        if item.label is not None:
            message.info.label = item.label
        if item.attributes:
            message.info.attributes.CopyFrom(convert.struct(dict(item.attributes)))
        message.info.uri = item.uri
    except LikewiseError as error:
        return error, item_id
    except (ValueError, TypeError, UnicodeError) as error:
        return InvalidArgument(f"this item cannot be sent: {error}"), item_id
    return message, item_id


def upsert_weight(prepared_item: tuple[cpb.UpsertItem | LikewiseError, str]) -> int:
    """Return the bytes an item adds to a message."""
    message, _ = prepared_item
    return 0 if isinstance(message, LikewiseError) else message.ByteSize() + 16


def examples(
    images: Sequence[ImageLike] | None,
    vectors: Any,
    labels: Sequence[str] | None,
    ids: Sequence[str] | None,
    limits: Limits,
) -> list[hpb.Example]:
    """Return labelled examples to train on; none if neither images nor vectors are given."""
    if images is None and vectors is None:
        if labels is not None:
            raise InvalidArgument("labels belong to images or vectors: give those too, or add labelled items")
        return []
    given = queries(images, vectors, None, limits)
    if labels is None:
        raise InvalidArgument("training examples need labels, one each")
    same_length(len(given.sources), labels=labels, ids=ids)
    made: list[hpb.Example] = []
    for i, source in enumerate(given.sources):
        value = given.prepare(source)
        if isinstance(value, LikewiseError):
            raise value
        example = hpb.Example(id=ids[i] if ids else "", label=labels[i])
        if isinstance(value, bytes):
            example.image.data = value
        else:
            example.vector = np.asarray(value, dtype="<f4").tobytes()
        made.append(example)
    return made


def same_length(count: int, **lists: Sized | None) -> None:
    """Raise InvalidArgument unless each list given has `count` entries."""
    for name, values in lists.items():
        if values is not None and len(values) != count:
            raise InvalidArgument(f"{name} has {len(values)} entries for {count} items: give one each")


def ids_per_message(limits: Limits, dim: int) -> int:
    """Return how many items may be asked for at once so that the reply fits."""
    return max(1, min(limits.max_items, limits.max_message_bytes // 2 // (2048 + 4 * dim)))
