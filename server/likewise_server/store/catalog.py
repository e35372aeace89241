"""The rows of `collections`: made, found, changed, listed and deleted."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from likewise_server.errors import AlreadyExists, Internal, InvalidArgument, NotFound
from likewise_server.store import approximate, attribute_indexes, schema
from likewise_server.store.texts import checksum, intact
from likewise_server.store.types import CollectionSpace, Metric, Storage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

MAX_DIM = 65_536
MAX_NAME = 128
MAX_FACTORY = 64
_FACTORY = re.compile(r"[A-Za-z0-9_,()-]+")
_COLUMNS = (
    "id, name, dim, metric, fingerprint, backbone, request_id, created_at, seq, item_count,"
    " index_spec, storage, text_crc, indexed"
)


FIXED = ("name", "dim", "metric", "fingerprint", "backbone", "request_id", "storage", "created_at")
"""The columns of a collection that never change, in the order in which its checksum has them."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A row of `collections`. `seq` counts the writes to its items; `index`, `indexed`, `storage`: see `Store`."""

    id: int
    name: str
    dim: int
    metric: Metric
    fingerprint: str
    backbone: str
    request_id: str
    created_at: float
    seq: int
    item_count: int
    index: str
    storage: Storage
    indexed: tuple[str, ...]

    @property
    def space(self) -> CollectionSpace:
        """What never changes of it."""
        return CollectionSpace(self.name, self.dim, self.metric, self.fingerprint, self.backbone, self.created_at)


def check_name(name: str, what: str) -> None:
    """Raise InvalidArgument for a name of a collection or head that is empty, too long or unprintable."""
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgument(f"A {what} name has 1 to {MAX_NAME} characters; this has {len(name)}.")
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise InvalidArgument(f"The {what} name {name!r} holds a control character; leave it out.")


def check_index(index: str, dim: int, metric: Metric) -> None:
    """Raise InvalidArgument for what is neither "auto" nor "exact" nor a FAISS factory that can be built."""
    if len(index) > MAX_FACTORY or not _FACTORY.fullmatch(index):
        raise InvalidArgument(
            f"There is no index {index[:MAX_FACTORY]!r}; choose 'auto', 'exact' or a FAISS factory like 'IVF256,SQ8'."
        )
    if index not in {"auto", "exact"}:
        approximate.check_factory(index, dim, metric)


def create(
    db: sqlite3.Connection,
    name: str,
    *,
    dim: int,
    metric: Metric,
    fingerprint: str,
    backbone: str,
    request_id: str,
    index: str,
    indexed: Sequence[str],
    storage: Storage,
) -> Collection:
    """Insert a collection, or return the one that the same request made before."""
    check_name(name, "collection")
    if not 1 <= dim <= MAX_DIM:
        raise InvalidArgument(f"dim is {dim}; it must be 1 to {MAX_DIM}.")
    if metric not in get_args(Metric):
        raise InvalidArgument(f"There is no metric {metric!r}; choose one of {', '.join(get_args(Metric))}.")
    if storage not in get_args(Storage):
        raise InvalidArgument(f"There is no storage {storage!r}; choose one of {', '.join(get_args(Storage))}.")
    check_index(index, dim, metric)
    if storage == "fp16" and metric != "cosine":
        raise InvalidArgument("storage fp16 needs metric cosine: other vectors may not fit its range. Choose fp32.")
    attributes = attribute_indexes.checked(indexed)
    spec = (dim, metric, fingerprint, backbone, index, storage, attributes)
    for old in _select(db, "name = ?", name):
        if not request_id or old.request_id != request_id:
            raise AlreadyExists(
                f"There is a collection {name!r} already: dim {old.dim}, {old.metric}, space {old.fingerprint!r}."
                " Use it, delete it, or choose another name."
            )
        if (old.dim, old.metric, old.fingerprint, old.backbone, old.index, old.storage, old.indexed) != spec:
            raise AlreadyExists(f"This request made the collection {name!r} before, with other settings.")
        return old
    fixed = (name, dim, metric, fingerprint, backbone, request_id, storage, time.time())
    db.execute(
        f"INSERT INTO collections ({', '.join(FIXED)}, text_crc, index_spec, indexed)"  # noqa: S608  # ours
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*fixed, checksum(*fixed), index, json.dumps(attributes)),
    )
    attribute_indexes.bring_up_to_date(db)
    return find(db, name)


def alter(db: sqlite3.Connection, name: str, index: str | None, indexed: Sequence[str] | None) -> Collection:
    """Change what is given; raises NotFound and InvalidArgument."""
    collection = find(db, name)
    if index is not None:
        check_index(index, collection.dim, collection.metric)
        db.execute("UPDATE collections SET index_spec = ? WHERE id = ?", (index, collection.id))
    if indexed is not None:
        attributes = json.dumps(attribute_indexes.checked(indexed))
        db.execute("UPDATE collections SET indexed = ? WHERE id = ?", (attributes, collection.id))
        attribute_indexes.bring_up_to_date(db)
    return find(db, name)


def find(db: sqlite3.Connection, name: str) -> Collection:
    """Return the collection of that name; raises NotFound."""
    for collection in _select(db, "name = ?", name):
        return collection
    raise NotFound(f"There is no collection {name!r}. Create it, or list the collections there are.")


def find_id(db: sqlite3.Connection, collection_id: int) -> Collection:
    """Return the collection with that id; raises NotFound, where it was deleted meanwhile."""
    for collection in _select(db, "id = ?", collection_id):
        return collection
    raise NotFound("The collection was deleted meanwhile.")


def page(db: sqlite3.Connection, after: str, limit: int) -> list[Collection]:
    """Return up to `limit` collections whose names come after `after`, by name."""
    return _select(db, "name > ? ORDER BY name LIMIT ?", after, limit)


def _select(db: sqlite3.Connection, condition: str, *values: str | int) -> list[Collection]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM collections WHERE {condition}", values)  # noqa: S608  # ours
    return [_collection(row) for row in rows]


def _collection(row: Sequence[Any]) -> Collection:
    *values, crc, indexed = row
    what = f"The row of the collection {values[1]!r}"
    found = Collection(*(*values, tuple(schema.parsed(indexed, what))))
    if not intact(crc, *(getattr(found, column) for column in FIXED)):
        raise Internal(f"{what} is damaged: it is not what was written. Run fsck, and restore it from a backup.")
    return found


def delete(db: sqlite3.Connection, name: str) -> tuple[int, list[str]]:
    """Delete a collection and what belongs to it; return its id and its segments' files; raises NotFound."""
    collection = find(db, name)
    files = db.execute("SELECT file FROM segments WHERE collection_id = ?", (collection.id,)).fetchall()
    db.execute("DELETE FROM collections WHERE id = ?", (collection.id,))
    attribute_indexes.bring_up_to_date(db)
    return collection.id, [file for (file,) in files]


def touch(db: sqlite3.Connection, collection_id: int, added: int) -> int:
    """Count one write to the items, `added` more of them; return the new `seq`."""
    row = db.execute(
        "UPDATE collections SET seq = seq + 1, item_count = item_count + ? WHERE id = ? RETURNING seq",
        (added, collection_id),
    ).fetchone()
    return int(row[0])
