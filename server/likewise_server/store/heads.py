"""Head rows: versions that only grow, blobs that are opaque and checksummed."""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING

from likewise_server.errors import Internal, InvalidArgument, NotFound
from likewise_server.store import catalog, schema
from likewise_server.store.texts import checksum, intact
from likewise_server.store.types import Attributes, HeadRow

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from likewise_server.store.catalog import Collection

TEXTS = ("name", "version", "kind", "meta", "request_id")
"""The columns that a head's second checksum is of."""
_TEXTS = ", ".join(TEXTS)
_COLUMNS = f"{_TEXTS}, text_crc, data, crc, created_at"


def save(
    db: sqlite3.Connection,
    collection_id: int,
    name: str,
    kind: str,
    meta: Attributes,
    blob: bytes,
    request_id: str,
) -> HeadRow:
    """Insert the next version of a head, or return the one that the same request made before."""
    catalog.check_name(name, "head")
    collection = catalog.find_id(db, collection_id)
    if earlier := of_request(db, collection, name, request_id):
        return earlier
    version = db.execute(
        "INSERT INTO head_names VALUES (?, ?, 1)"
        " ON CONFLICT DO UPDATE SET last_version = last_version + 1 RETURNING last_version",
        (collection_id, name),
    ).fetchone()[0]
    words = (name, version, kind, encode_meta(meta), request_id)
    db.execute(
        f"INSERT INTO heads (collection_id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (collection_id, *words, checksum(*words), blob, zlib.crc32(blob), time.time()),
    )
    return _select(db, collection, "AND name = ? AND version = ?", (name, version))[0]


def encode_meta(meta: Attributes) -> str:
    """Return the description of a head as JSON; raises InvalidArgument where it is none."""
    try:
        return json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"The head's meta is not JSON: {error}.") from error


def get(db: sqlite3.Connection, collection: Collection, name: str, version: int) -> HeadRow:
    """Return a version of a head, 0 for the latest; raises NotFound."""
    condition = "AND name = ? AND (version = ? OR ? = 0) ORDER BY version DESC LIMIT 1"
    rows = _select(db, collection, condition, (name, version, version))
    if not rows:
        raise _missing(collection, name, version)
    return rows[0]


def of_request(db: sqlite3.Connection, collection: Collection, name: str, request_id: str) -> HeadRow | None:
    """Return the version of a head that a request stored, None if it stored none or the request has no id."""
    rows = _select(db, collection, "AND name = ? AND request_id = ?", (name, request_id)) if request_id else []
    return rows[0] if rows else None


def page(
    db: sqlite3.Connection,
    collection: Collection,
    name: str,
    after: tuple[str, int],
    limit: int,
    *,
    blobs: bool,
) -> list[HeadRow]:
    """Return up to `limit` versions, of one head or of all, that come after `after`, by name and version."""
    condition = "AND (name = ? OR ? = '') AND (name, version) > (?, ?) ORDER BY name, version LIMIT ?"
    return _select(db, collection, condition, (name, name, *after, limit), blobs=blobs)


def delete(db: sqlite3.Connection, collection_id: int, name: str, version: int) -> int:
    """Delete a version of a head, 0 for all; return how many; raises NotFound."""
    collection = catalog.find_id(db, collection_id)
    deleted = db.execute(
        "DELETE FROM heads WHERE collection_id = ? AND name = ? AND (version = ? OR ? = 0)",
        (collection_id, name, version, version),
    ).rowcount
    if not deleted:
        raise _missing(collection, name, version)
    return deleted


def _missing(collection: Collection, name: str, version: int) -> NotFound:
    which = f"version {version} of the head" if version else "head"
    return NotFound(f"There is no {which} {name!r} in {collection.name!r}. Train it, or list the heads there are.")


def _select(
    db: sqlite3.Connection,
    collection: Collection,
    condition: str,
    values: tuple[object, ...],
    *,
    blobs: bool = True,
) -> list[HeadRow]:
    columns = _COLUMNS if blobs else _COLUMNS.replace("data, crc", "NULL, NULL")
    rows = db.execute(
        f"SELECT {columns} FROM heads WHERE collection_id = ? {condition}",  # noqa: S608
        (collection.id, *values),
    )
    found = []
    for *words, text_crc, blob, crc, created_at in rows:
        name, version, kind, meta, request_id = words
        what = f"Version {version} of the head {name!r}"
        if not (intact(text_crc, *words) and (not blobs or _whole(blob, crc))):
            raise Internal(f"{what} is damaged. Delete it and train it again.")
        facts = schema.parsed(meta, what)
        found.append(HeadRow(collection.name, name, version, kind, facts, blob or b"", created_at, request_id))
    return found


def checked(db: sqlite3.Connection, collection_id: int) -> Iterator[tuple[str, int, bool]]:
    """Yield the name and version of each head, and whether it is what was written."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM heads WHERE collection_id = ?", (collection_id,))  # noqa: S608
    for *words, text_crc, blob, crc, _ in rows:
        yield words[0], words[1], intact(text_crc, *words) and _whole(blob, crc)


def _whole(blob: object, crc: int) -> bool:
    return isinstance(blob, bytes) and zlib.crc32(blob) == crc
