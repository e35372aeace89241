"""Items: checked and encoded in the caller's thread, written in the writer's, read from any."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.errors import InvalidArgument, LikewiseError, OutOfRange
from likewise_server.store import catalog, vectors
from likewise_server.store.types import Float32, Int64, Item, Labelled, NewItem, Outcome

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.filter_sql import Condition

MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_ATTRIBUTES_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that passed its checks, in the form in which it is written."""

    ext_id: str
    label: str | None
    attributes: str
    uri: str
    content_hash: str
    vector: Float32
    data: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class Change:
    """What one write did to the rows of a collection, for the index.

    `vids` `(n,)` and `rows` `(n, dim)`, as stored, were added; `removed` vids went, some of them perhaps
    added by this same write. `seq` is the collection's count of writes after it.
    """

    collection_id: int
    seq: int
    vids: Int64
    rows: Float32
    removed: Int64


def prepare(item: NewItem, collection: Collection) -> Prepared:
    """Check and encode an item; raises InvalidArgument, OutOfRange or FailedPrecondition."""
    _check_text(item.id, "id", MAX_ID_BYTES)
    if not item.id:
        raise InvalidArgument("The id is empty; give every item one of its own.")
    for value, what in ((item.label or "", "label"), (item.uri, "uri"), (item.content_hash, "content hash")):
        _check_text(value, what, MAX_TEXT_BYTES)
    attributes = encode_attributes(item.attributes)
    vector = vectors.checked(item.vector, collection.dim, collection.metric)
    data, crc = vectors.encode(vector)
    return Prepared(item.id, item.label, attributes, item.uri, item.content_hash, vector, data, crc)


def _check_text(value: str, what: str, limit: int) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"The {what} holds half a surrogate pair, which is not a character.") from None
    if "\0" in value:
        raise InvalidArgument(f"The {what} holds a NUL character; leave it out.")
    if size > limit:
        raise InvalidArgument(f"The {what} has {size} bytes in UTF-8; the limit is {limit}.")


def encode_attributes(attributes: dict[str, Any]) -> str:
    """Return attributes as canonical JSON; raises InvalidArgument or, for their size, OutOfRange."""
    _check_json(attributes, 0)
    text = json.dumps(attributes, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
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


def upsert(
    db: sqlite3.Connection, collection_id: int, prepared: Sequence[Prepared]
) -> tuple[list[Outcome], Change | None]:
    """Write items, each as a new version unless nothing about it changed; None where nothing was written."""
    now = time.time()
    catalog.find_id(db, collection_id)
    outcomes: list[Outcome] = []
    vids: list[int] = []
    rows: list[Float32] = []
    removed: list[int] = []
    for item in prepared:
        old = db.execute(
            "SELECT items.vid, label, attributes, uri, content_hash, data"
            " FROM items LEFT JOIN vectors USING (vid) WHERE collection_id = ? AND ext_id = ?",
            (collection_id, item.ext_id),
        ).fetchone()
        if old is not None:
            if old[1:] == (item.label, item.attributes, item.uri, item.content_hash, item.data):
                outcomes.append(Outcome.UNCHANGED)
                continue
            db.execute("DELETE FROM items WHERE vid = ?", (old[0],))
            removed.append(old[0])
        outcomes.append(Outcome.CREATED if old is None else Outcome.UPDATED)
        vid = db.execute(
            "INSERT INTO items (collection_id, ext_id, label, attributes, uri, content_hash, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (collection_id, item.ext_id, item.label, item.attributes, item.uri, item.content_hash, now),
        ).lastrowid
        db.execute("INSERT INTO vectors (vid, data, crc) VALUES (?, ?, ?)", (vid, item.data, item.crc))
        vids.append(int(vid or 0))
        rows.append(item.vector)
    if not vids:
        return outcomes, None
    seq = catalog.touch(db, collection_id, len(vids) - len(removed))
    return outcomes, Change(collection_id, seq, np.array(vids, np.int64), np.stack(rows), np.array(removed, np.int64))


def delete(
    db: sqlite3.Connection, collection_id: int, ids: Sequence[str] | None, condition: Condition
) -> tuple[int, Change | None]:
    """Delete the items named (all for None) that meet the condition; return how many."""
    collection = catalog.find_id(db, collection_id)
    removed = np.sort(matching(db, collection_id, condition, ids))
    if not len(removed):
        return 0, None
    db.execute("DELETE FROM items WHERE vid IN (SELECT value FROM json_each(?))", (_json_list(removed.tolist()),))
    seq = catalog.touch(db, collection_id, -len(removed))
    empty = np.empty((0, collection.dim), np.float32)
    return len(removed), Change(collection_id, seq, np.empty(0, np.int64), empty, removed)


def matching(
    db: sqlite3.Connection, collection_id: int, condition: Condition, ids: Sequence[str] | None = None
) -> Int64:
    """Return the vids of the items that meet the condition, of those named where `ids` is given."""
    sql, values = condition
    if ids is not None:
        sql = f" AND ext_id IN (SELECT value FROM json_each(?)){sql}"  # noqa: S608  # holds no values
        values = [_json_list(ids), *values]
    cursor = db.execute(f"SELECT vid FROM items WHERE collection_id = ?{sql}", (collection_id, *values))  # noqa: S608
    return np.fromiter((row[0] for row in cursor), dtype=np.int64)


def count(db: sqlite3.Connection, collection: Collection, condition: Condition) -> int:
    """Return the number of items that meet the condition."""
    sql, values = condition
    if not sql:
        return collection.item_count
    query = f"SELECT count(*) FROM items WHERE collection_id = ?{sql}"  # noqa: S608
    return int(db.execute(query, (collection.id, *values)).fetchone()[0])


def by_id(db: sqlite3.Connection, collection: Collection, ids: Sequence[str], *, with_vectors: bool) -> dict[str, Item]:
    """Return the items there are among those named."""
    where = "collection_id = ? AND ext_id IN (SELECT value FROM json_each(?))"
    found = _select(db, collection, where, [collection.id, _json_list(ids)], with_vectors=with_vectors)
    return {item.id: item for _, item in found}


def by_vid(db: sqlite3.Connection, collection: Collection, vids: Iterable[int]) -> dict[int, Item]:
    """Return the items of these versions, without vectors."""
    where = "items.vid IN (SELECT value FROM json_each(?))"
    return dict(_select(db, collection, where, [_json_list(list(vids))], with_vectors=False))


def page(
    db: sqlite3.Connection,
    collection: Collection,
    condition: Condition,
    after: str,
    limit: int,
    *,
    with_vectors: bool,
) -> list[Item]:
    """Return up to `limit` items that meet the condition and whose ids come after `after`, by id."""
    sql, values = condition
    return [
        item
        for _, item in _select(
            db,
            collection,
            f"collection_id = ? AND ext_id > ?{sql} ORDER BY ext_id LIMIT ?",
            [collection.id, after, *values, limit],
            with_vectors=with_vectors,
        )
    ]


def _select(
    db: sqlite3.Connection,
    collection: Collection,
    where: str,
    values: Sequence[object],
    *,
    with_vectors: bool,
) -> list[tuple[int, Item]]:
    columns = "items.vid, ext_id, label, attributes, uri, content_hash, updated_at"
    join = " LEFT JOIN vectors USING (vid)" if with_vectors else ""
    extra = ", data, crc" if with_vectors else ""
    rows = db.execute(
        f"SELECT {columns}{extra} FROM items{join} WHERE {where}",  # noqa: S608
        values,
    )
    found = []
    for vid, ext_id, label, attributes, uri, content_hash, updated_at, *stored in rows:
        vector = vectors.decode(stored[0] or b"", stored[1] or 0, collection.dim, ext_id) if stored else None
        item = Item(ext_id, label, json.loads(attributes), uri, content_hash, updated_at, vector)
        found.append((int(vid), item))
    return found


def content_hashes(db: sqlite3.Connection, collection_id: int, ids: Sequence[str]) -> dict[str, str]:
    """Return the content hashes of the items there are among those named."""
    return dict(
        db.execute(
            "SELECT ext_id, content_hash FROM items"
            " WHERE collection_id = ? AND ext_id IN (SELECT value FROM json_each(?))",
            (collection_id, _json_list(ids)),
        ).fetchall()
    )


def labelled(db: sqlite3.Connection, collection: Collection, condition: Condition) -> Labelled:
    """Return the labelled items that meet the condition, oldest first; raises Internal for a damaged one."""
    sql, values = condition
    rows = db.execute(
        "SELECT vid, ext_id, label, content_hash FROM items"  # noqa: S608
        f" WHERE collection_id = ? AND label IS NOT NULL{sql} ORDER BY vid",
        (collection.id, *values),
    ).fetchall()
    return Labelled(
        [row[1] for row in rows],
        vectors.intact_rows(db, [row[0] for row in rows], collection.dim),
        [row[2] for row in rows],
        [row[3] for row in rows],
    )


def mean_vector(db: sqlite3.Connection, collection: Collection, limit: int) -> Float32:
    """Return the mean, `(dim,)`, of the `limit` oldest L2-normalised vectors; zeros if there are none."""
    vids = vectors.stored_vids(db, collection.id)[: max(limit, 0)]
    units = vectors.normalised(vectors.intact_rows(db, vids, collection.dim))
    return np.asarray(units.sum(axis=0, dtype=np.float64) / max(len(units), 1), np.float32)


def _json_list(values: Sequence[object]) -> str:
    """Return a list for `json_each`, which takes any number of values as one parameter.

    No id that is stored holds NUL, and SQLite ends a JSON string there: it would stand for another id.
    """
    return json.dumps([value for value in values if not (isinstance(value, str) and "\0" in value)])


def prepare_all(items: Sequence[NewItem], collection: Collection) -> tuple[list[Prepared], list[LikewiseError | None]]:
    """Return the items that passed their checks, and one entry per item: None or what is wrong with it."""
    good: list[Prepared] = []
    errors: list[LikewiseError | None] = []
    for item in items:
        try:
            good.append(prepare(item, collection))
            errors.append(None)
        except LikewiseError as error:
            errors.append(error)
    return good, errors
