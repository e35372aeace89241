"""Out of what people give, the messages that a collection is asked with."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from likewise import convert
from likewise.chunks import CHUNK_BYTES, CHUNK_ITEMS, cut, in_flight, prepared
from likewise.errors import InvalidArgument, LikewiseError
from likewise.images import ImageLike, encoded
from likewise.results import Float32, Hit, Item, Limits
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb

if TYPE_CHECKING:
    from likewise.collection import NewItem

QueryValue: TypeAlias = bytes | str | Float32
R = TypeVar("R")
LARGEST_COUNT = 2**31  # what the wire carries
CHUNK_ROWS = 256  # vectors of one message: no network keeps them waiting


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
        return Queries(several(images, "images"), lambda image: encoded(image, limits.max_image_bytes))
    if ids is not None:
        return Queries(several(ids, "ids"), str)
    try:
        matrix = np.asarray(vectors, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"vectors are an (n, dim) array of numbers: {error}") from error
    if matrix.ndim != 2:  # noqa: PLR2004  # a matrix
        raise InvalidArgument(f"vectors are an (n, dim) array; this one is {matrix.shape}")
    return Queries(matrix, lambda row: row)


def several(values: Any, what: str) -> Any:
    """Return a list as it is. Raises InvalidArgument for the one text or bytes that would be taken letter by letter."""
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
    hits: int,
) -> list[R]:
    """Return ask()'s answer to each query, in order, or failed(error) for one that could not be read.

    Each asks for `hits` hits, which decides how many go into one message.
    """

    async def answers(chunk: list[QueryValue | LikewiseError]) -> list[R]:
        sound = [value for value in chunk if not isinstance(value, LikewiseError)]
        replies = iter(await ask(sound) if sound else [])
        return [failed(value) if isinstance(value, LikewiseError) else next(replies) for value in chunk]

    results: list[R] = []
    most = max(1, limits.max_hits // max(hits, 1))
    if isinstance(given.sources, np.ndarray):
        chunks = _slices(given.sources, min(most, CHUNK_ROWS), limits)
    else:
        chunks = cut(prepared(given.sources, given.prepare), _query_weight, limits, most=min(most, CHUNK_ITEMS))
    async for _, part in in_flight(chunks, answers, window):
        results += part
    return results


async def _slices(rows: Float32, most: int, limits: Limits) -> AsyncIterator[list[QueryValue | LikewiseError]]:
    """Yield rows for one message after the other; they are ready as they are."""
    step = max(1, min(most, limits.max_items, CHUNK_BYTES // max(rows.itemsize * rows.shape[1], 1)))
    for start in range(0, len(rows), step):
        yield list(rows[start : start + step])


def _query_weight(value: QueryValue | LikewiseError) -> int:
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return len(value) + 16 if isinstance(value, (bytes, str)) else 0


def example_messages(values: Sequence[Any], ids: Sequence[str], limits: Limits) -> list[cpb.ExampleRef]:
    """Return examples to search with: images, 1-d vectors, items and hits, then ids of stored items.

    Raises what is wrong with the first that cannot be sent.
    """
    made = [_example(value, limits) for value in several(values, "examples")]
    return made + [cpb.ExampleRef(id=text(item_id, "id")) for item_id in several(ids, "ids")]


def _example(value: Any, limits: Limits) -> cpb.ExampleRef:
    if isinstance(value, (Hit, Item)):
        return cpb.ExampleRef(id=value.id)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return cpb.ExampleRef(vector=value.astype("<f4").tobytes())
    data = encoded(value, limits.max_image_bytes)
    if isinstance(data, LikewiseError):
        raise data
    return cpb.ExampleRef(image=pb.Image(data=data))


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
        message.info.id = text(item_id, "id")
        if item.label is not None:
            message.info.label = text(item.label, "label")
        if item.attributes:
            message.info.attributes.CopyFrom(convert.struct(dict(item.attributes)))
        message.info.uri = item.uri
    except LikewiseError as error:
        return error, item_id
    except (ValueError, TypeError) as error:
        return InvalidArgument(f"this item cannot be sent: {error}"), str(item_id)
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
    if not len(given.sources):
        raise InvalidArgument("there are no examples in what was given: give some, or leave it out")
    if labels is None:
        raise InvalidArgument("training examples need labels, one each")
    same_length(len(given.sources), labels=labels, ids=ids)
    made: list[hpb.Example] = []
    for i, source in enumerate(given.sources):
        value = given.prepare(source)
        if isinstance(value, LikewiseError):
            raise value
        example = hpb.Example(id=text(ids[i], "id") if ids else "", label=text(labels[i], "label"))
        if isinstance(value, bytes):
            example.image.data = value
        else:
            example.vector = np.asarray(value, dtype="<f4").tobytes()
        made.append(example)
    return made


def looks_at(images: Sequence[ImageLike] | None, views: str) -> hpb.Views.ValueType:
    """Return the number of looks at each image. Raises InvalidArgument where there are none to look at."""
    if views and images is None:
        raise InvalidArgument("views are looks at images, and none are given: leave views out")
    return convert.views(views)


def stored_ids(ids: Sequence[str] | None, what: str) -> list[str]:
    """Return the ids of stored items. Raises InvalidArgument for a list without any: on the wire that is all items."""
    if ids is not None and not len(ids):
        raise InvalidArgument(f"{what} is empty: name some items, or leave it out")
    return [text(item_id, "id") for item_id in several(ids or (), what)]


def text(value: Any, what: str) -> str:
    """Return a label or id as text; NumPy's integers and strings become theirs. Raises InvalidArgument."""
    if isinstance(value, (np.integer, np.str_)):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} {value!r} is a {type(value).__name__}: give a text, as {str(value)!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} {value!r} is no Unicode text: {error.reason}") from error
    return value


def whole(value: Any, what: str) -> int:
    """Return a number that the wire can carry. Raises InvalidArgument for what is not one."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < LARGEST_COUNT:
        raise InvalidArgument(f"{what} is {value!r}: give a whole number, not negative")
    return int(value)


def same_length(count: int, **lists: Sized | None) -> None:
    """Raise InvalidArgument unless each list given has `count` entries."""
    for name, values in lists.items():
        if values is not None and len(values) != count:
            raise InvalidArgument(f"{name} has {len(values)} entries for {count} items: give one each")


def ids_per_message(limits: Limits, dim: int) -> int:
    """Return how many items may be asked for at once so that the reply fits."""
    return max(1, min(limits.max_items, limits.max_message_bytes // 2 // (2048 + 4 * dim)))
