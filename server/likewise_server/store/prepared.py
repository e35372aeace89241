"""New items, checked and encoded for the database in the caller's thread, a whole call at once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from likewise_server.errors import InvalidArgument, LikewiseError, OutOfRange
from likewise_server.store import vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.types import Attributes, Float32, NewItem

MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_ATTRIBUTES_DEPTH = 32
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

Texts: TypeAlias = tuple[str, str | None, str, str, str]
"""Id, label, attributes as canonical JSON, URI and content hash."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Items that passed their checks, in the form in which they are written.

    `rows` is `(n, dim)` float32, the vectors as given, and `crcs` has the CRC-32 of the bytes of each.
    """

    texts: list[Texts]
    rows: Float32
    crcs: list[int]

    @property
    def bytes(self) -> int:
        """Roughly what will be written."""
        return self.rows.nbytes + sum(len(attributes) for _, _, attributes, _, _ in self.texts)


def prepare(items: Sequence[NewItem], collection: Collection) -> tuple[Prepared, list[LikewiseError | None]]:
    """Return the items that passed their checks, and one entry per item: None or what is wrong with it.

    The errors are InvalidArgument, OutOfRange and FailedPrecondition.
    """
    errors: list[LikewiseError | None] = [None] * len(items)
    texts: list[Texts] = []
    given: list[Float32] = []
    places: list[int] = []
    for place, item in enumerate(items):
        try:
            texts.append(_texts(item))
            given.append(vectors.shaped(item.vector, collection.dim))
            places.append(place)
        except LikewiseError as error:
            errors[place] = error
            del texts[len(places) :]
    rows = np.concatenate(given).reshape(-1, collection.dim) if given else np.empty((0, collection.dim), np.float32)
    usable = vectors.usable(rows, collection.metric)
    if not usable.all():
        for at in np.flatnonzero(~usable):
            errors[places[at]] = vectors.fault(rows[at : at + 1], collection.metric)
        texts = [each for each, good in zip(texts, usable, strict=True) if good]
        rows = rows[usable]
    return Prepared(texts, rows, vectors.checksums(rows)), errors


def _texts(item: NewItem) -> Texts:
    check_text(item.id, "id", MAX_ID_BYTES)
    if not item.id:
        raise InvalidArgument("The id is empty; give every item one of its own.")
    if item.label:
        check_text(item.label, "label", MAX_TEXT_BYTES)
    check_text(item.uri, "uri", MAX_TEXT_BYTES)
    check_text(item.content_hash, "content hash", MAX_TEXT_BYTES)
    return item.id, item.label, encode_attributes(item.attributes), item.uri, item.content_hash


def check_text(value: str, what: str, limit: int) -> None:
    """Raise InvalidArgument for a text with odd characters or of over `limit` bytes."""
    if value.isascii() and len(value) <= limit and "\0" not in value:  # nearly all are, and this is quick
        return
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"The {what} holds half a surrogate pair, which is not a character.") from None
    if "\0" in value:
        raise InvalidArgument(f"The {what} holds a NUL character; leave it out.")
    if size > limit:
        raise InvalidArgument(f"The {what} has {size} bytes in UTF-8; the limit is {limit}.")


def encode_attributes(attributes: Attributes) -> str:
    """Return attributes as canonical JSON; raises InvalidArgument or, for their size, OutOfRange."""
    if not attributes:
        return "{}"
    _check_json(attributes, 0)
    text = _CANONICAL.encode(attributes)
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise InvalidArgument("The attributes hold half a surrogate pair, which is not a character.") from None
    if size > MAX_TEXT_BYTES:
        raise OutOfRange(f"The attributes have {size} bytes as JSON; the limit is {MAX_TEXT_BYTES}.")
    return text


def _check_json(value: object, depth: int) -> None:
    if depth > MAX_ATTRIBUTES_DEPTH:
        raise InvalidArgument(f"The attributes are nested more than {MAX_ATTRIBUTES_DEPTH} deep.")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise InvalidArgument(f"The attribute name {key!r} is not a string.")
            _check_json(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_json(each, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgument(f"The attributes hold {value}, which JSON cannot; leave it out.")
    elif value is not None and not isinstance(value, str | int):
        raise InvalidArgument(f"The attributes hold a {type(value).__name__}, which is no JSON value.")
