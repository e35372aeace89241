"""Items: written in the writer's thread, read from any."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.errors import Internal
from likewise_server.store import catalog, schema, vectors
from likewise_server.store.texts import checksum, intact
from likewise_server.store.types import Float32, Int64, Item, Labelled, Outcome

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.filter_sql import Condition
    from likewise_server.store.prepared import Prepared, Texts

MAX_ROWS = 1024
"""Items to an INSERT: SQLite takes 32766 parameters, and copies the pages that each statement touches."""
MAX_BLOB = 32 * 2**20
"""Bytes of vectors to an INSERT."""
TEXTS = ("ext_id", "label", "attributes", "uri", "content_hash")
"""The columns that an item's checksum is of."""
_TEXTS = ", ".join(TEXTS)
_COLUMNS = f"items.vid, {_TEXTS}, updated_at, text_crc"


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


def upsert(db: sqlite3.Connection, collection_id: int, new: Prepared) -> tuple[list[Outcome], Change | None]:
    """Write items, each as a new version unless nothing about it changed; None where nothing was written.

    Of several items with one id the last is written, and every one has its outcome.
    """
    catalog.find_id(db, collection_id)
    stored = contents(db, collection_id, [texts[0] for texts in new.texts])
    outcomes: list[Outcome] = []
    written: dict[str, int] = {}  # by id, where in `new` its last change stands; in order of that
    for at, texts in enumerate(new.texts):
        ext_id = texts[0]
        if ext_id in written:
            before = written[ext_id]
            same = texts == new.texts[before] and vectors.as_stored(new.rows[at]) == vectors.as_stored(new.rows[before])
        elif ext_id in stored:
            same = stored[ext_id][1:] == (*texts[1:], vectors.as_stored(new.rows[at]), True)
        else:
            outcomes.append(Outcome.CREATED)
            written[ext_id] = at
            continue
        outcomes.append(Outcome.UNCHANGED if same else Outcome.UPDATED)
        if not same:
            written.pop(ext_id, None)
            written[ext_id] = at
    if not written:
        return outcomes, None
    removed = sorted(stored[ext_id][0] for ext_id in written if ext_id in stored)
    _delete(db, removed)
    chosen = list(written.values())
    rows = new.rows if len(chosen) == len(new.rows) else new.rows[chosen]
    first = _insert(db, collection_id, [new.texts[at] for at in chosen], rows, [new.crcs[at] for at in chosen])
    seq = catalog.touch(db, collection_id, len(chosen) - len(removed))
    vids = np.arange(first, first + len(chosen), dtype=np.int64)
    return outcomes, Change(collection_id, seq, vids, rows, np.array(removed, np.int64))


def contents(db: sqlite3.Connection, collection_id: int, ids: list[str]) -> dict[str, tuple[Any, ...]]:
    """Return by id the vid, label, attributes, URI, content hash and vector of what is there, and if it is intact."""
    rows = db.execute(
        f"SELECT {_TEXTS}, text_crc, items.vid, data FROM items LEFT JOIN vectors USING (vid)"  # noqa: S608
        " WHERE collection_id = ? AND ext_id IN (SELECT value FROM json_each(?))",
        (collection_id, _json_list(ids)),
    )
    return {words[0]: (vid, *words[1:], data, intact(crc, *words)) for *words, crc, vid, data in rows}


def _insert(
    db: sqlite3.Connection, collection_id: int, texts: Sequence[Texts], rows: Float32, crcs: Sequence[int]
) -> int:
    """Write items under new vids, one after the other; return the first.

    Few statements for many rows: another thread may take the interpreter whenever one is run.
    """
    # AUTOINCREMENT keeps the largest vid that there ever was here, and follows what is inserted below.
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
    first = last[0] + 1 if last else 1
    now = time.time()
    start = 0
    while start < len(texts):
        # A power of two: few different statements, which stay prepared.
        many = min(MAX_ROWS, 1 << ((len(texts) - start).bit_length() - 1))
        values: list[object] = []
        for at in range(start, start + many):
            values += (first + at, collection_id, *texts[at], now, checksum(*texts[at]))
        db.execute(
            f"INSERT INTO items (vid, collection_id, {_TEXTS}, updated_at, text_crc) VALUES "  # noqa: S608
            + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * many),
            values,
        )
        start += many
    size = 4 * rows.shape[1]
    step = max(1, MAX_BLOB // size)
    for start in range(0, len(rows), step):
        db.execute(
            "INSERT INTO vectors (vid, data, crc) SELECT ? + key, substr(?, 1 + key * ?, ?), value FROM json_each(?)",
            (
                first + start,
                vectors.as_stored(rows[start : start + step]),
                size,
                size,
                _json_list(crcs[start : start + step]),
            ),
        )
    return first


def _delete(db: sqlite3.Connection, vids: Sequence[int]) -> None:
    if vids:
        db.execute("DELETE FROM items WHERE vid IN (SELECT value FROM json_each(?))", (_json_list(vids),))


def delete(
    db: sqlite3.Connection, collection_id: int, ids: Sequence[str] | None, condition: Condition
) -> tuple[int, Change | None]:
    """Delete the items named (all for None) that meet the condition; return how many."""
    collection = catalog.find_id(db, collection_id)
    removed = np.sort(matching(db, collection_id, condition, ids))
    if not len(removed):
        return 0, None
    _delete(db, removed.tolist())
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


def matching_among(db: sqlite3.Connection, collection_id: int, condition: Condition, vids: Int64) -> Int64:
    """Return those of the vids `(n,)` whose items meet the condition, ascending.

    Each of them is looked up: for a few thousand, that is quicker than an index on all items.
    """
    sql, values = condition
    # The + keeps SQLite from an index, all of which begin with the collection.
    cursor = db.execute(
        f"SELECT vid FROM items WHERE vid IN (SELECT value FROM json_each(?)) AND +collection_id = ?{sql}",  # noqa: S608
        (_json_list(vids.tolist()), collection_id, *values),
    )
    return np.fromiter((row[0] for row in cursor.fetchall()), dtype=np.int64)


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
    return {item.id: item for item in found}


def by_vid(db: sqlite3.Connection, vids: Iterable[int]) -> dict[int, Item]:
    """Return the items of these versions, without vectors."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM items WHERE vid IN (SELECT value FROM json_each(?))",  # noqa: S608
        (_json_list(list(vids)),),
    )
    return {row[0]: _item(row) for row in rows.fetchall()}


def ids_by_vid(db: sqlite3.Connection, vids: Iterable[int]) -> dict[int, str]:
    """Return the ids of these versions."""
    found = db.execute(
        "SELECT vid, ext_id FROM items WHERE vid IN (SELECT value FROM json_each(?))", (_json_list(list(vids)),)
    )
    return dict(found.fetchall())


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
    return _select(
        db,
        collection,
        f"collection_id = ? AND ext_id > ?{sql} ORDER BY ext_id LIMIT ?",
        [collection.id, after, *values, limit],
        with_vectors=with_vectors,
    )


def _select(
    db: sqlite3.Connection,
    collection: Collection,
    where: str,
    values: Sequence[object],
    *,
    with_vectors: bool,
) -> list[Item]:
    join = " LEFT JOIN vectors USING (vid)" if with_vectors else ""
    extra = ", data, crc" if with_vectors else ""
    rows = db.execute(
        f"SELECT {_COLUMNS}{extra} FROM items{join} WHERE {where}",  # noqa: S608
        values,
    )
    return [
        _item(row, vectors.decode(row[8] or b"", row[9] or 0, collection.dim, row[1]) if with_vectors else None)
        for row in rows
    ]


def _item(row: Sequence[Any], vector: Float32 | None = None) -> Item:
    """Return the item of a row of `_COLUMNS`; raises Internal for a damaged one."""
    _check(row[7], row[1:6])
    attributes = {} if row[3] == "{}" else schema.parsed(row[3], f"Item {row[1]!r}")
    return Item(row[1], row[2], attributes, row[4], row[5], row[6], vector)


def labelled(db: sqlite3.Connection, collection: Collection, condition: Condition) -> Labelled:
    """Return the labelled items that meet the condition, oldest first; raises Internal for a damaged one."""
    sql, values = condition
    rows = db.execute(
        f"SELECT vid, text_crc, {_TEXTS} FROM items"  # noqa: S608
        f" WHERE collection_id = ? AND label IS NOT NULL{sql} ORDER BY +vid",  # + or all collections are scanned
        (collection.id, *values),
    ).fetchall()
    for _, crc, *words in rows:
        _check(crc, words)
    return Labelled(
        [row[2] for row in rows],
        vectors.intact_rows(db, [row[0] for row in rows], collection.dim),
        [row[3] for row in rows],
        [row[6] for row in rows],
    )


def damaged(db: sqlite3.Connection, collection_id: int) -> Iterator[str]:
    """Yield the ids, as they are now, of the items whose texts are not what was written."""
    rows = db.execute(f"SELECT text_crc, {_TEXTS} FROM items WHERE collection_id = ?", (collection_id,))  # noqa: S608
    for crc, *words in rows:
        if not intact(crc, *words):
            yield words[0]


def _check(crc: object, words: Sequence[object]) -> None:
    if not intact(crc, *words):
        raise damage(words[0])


def damage(ext_id: object) -> Internal:
    """Return the error of an item whose texts are not what was written."""
    return Internal(
        f"Item {ext_id!r} is damaged: its id, label, attributes, URI or content hash is not what was written."
        " Run fsck, and restore it from a backup or write it again."
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
