"""The rows of `collections`: made, found, listed and deleted."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from likewise_server.errors import AlreadyExists, InvalidArgument, NotFound
from likewise_server.store.types import Metric

if TYPE_CHECKING:
    import sqlite3

MAX_DIM = 65_536
MAX_NAME = 128
_COLUMNS = "id, name, dim, metric, fingerprint, backbone, request_id, created_at, seq, item_count"


@dataclass(frozen=True, slots=True)
class Collection:
    """A row of `collections`. `seq` counts the writes to its items."""

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


def check_name(name: str, what: str) -> None:
    """Raise InvalidArgument for a name of a collection or head that is empty, too long or unprintable."""
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgument(f"A {what} name has 1 to {MAX_NAME} characters; this has {len(name)}.")
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise InvalidArgument(f"The {what} name {name!r} holds a control character; leave it out.")


def create(
    db: sqlite3.Connection,
    name: str,
    *,
    dim: int,
    metric: Metric,
    fingerprint: str,
    backbone: str,
    request_id: str,
) -> Collection:
    """Insert a collection, or return the one that the same request made before."""
    check_name(name, "collection")
    if not 1 <= dim <= MAX_DIM:
        raise InvalidArgument(f"dim is {dim}; it must be 1 to {MAX_DIM}.")
    if metric not in get_args(Metric):
        raise InvalidArgument(f"There is no metric {metric!r}; choose one of {', '.join(get_args(Metric))}.")
    spec = (dim, metric, fingerprint, backbone)
    row = db.execute(f"SELECT {_COLUMNS} FROM collections WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is None:
        db.execute(
            "INSERT INTO collections (name, dim, metric, fingerprint, backbone, request_id, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, *spec, request_id, time.time()),
        )
        return find(db, name)
    old = Collection(*row)
    if request_id and old.request_id == request_id:
        if (old.dim, old.metric, old.fingerprint, old.backbone) == spec:
            return old
        raise AlreadyExists(f"This request made the collection {name!r} before, with other settings.")
    raise AlreadyExists(
        f"There is a collection {name!r} already: dim {old.dim}, {old.metric}, space {old.fingerprint!r}."
        " Use it, delete it, or choose another name."
    )


def find(db: sqlite3.Connection, name: str) -> Collection:
    """Return the collection of that name; raises NotFound."""
    row = db.execute(f"SELECT {_COLUMNS} FROM collections WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is None:
        raise NotFound(f"There is no collection {name!r}. Create it, or list the collections there are.")
    return Collection(*row)


def find_id(db: sqlite3.Connection, collection_id: int) -> Collection:
    """Return the collection with that id; raises NotFound, where it was deleted meanwhile."""
    row = db.execute(f"SELECT {_COLUMNS} FROM collections WHERE id = ?", (collection_id,)).fetchone()  # noqa: S608
    if row is None:
        raise NotFound("The collection was deleted meanwhile.")
    return Collection(*row)


def page(db: sqlite3.Connection, after: str, limit: int) -> list[Collection]:
    """Return up to `limit` collections whose names come after `after`, by name."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM collections WHERE name > ? ORDER BY name LIMIT ?",  # noqa: S608
        (after, limit),
    )
    return [Collection(*row) for row in rows]


def delete(db: sqlite3.Connection, name: str) -> tuple[int, str | None]:
    """Delete a collection and what belongs to it; return its id and its segment's file; raises NotFound."""
    collection = find(db, name)
    file = db.execute("SELECT file FROM segments WHERE collection_id = ?", (collection.id,)).fetchone()
    db.execute("DELETE FROM collections WHERE id = ?", (collection.id,))
    return collection.id, file[0] if file else None


def touch(db: sqlite3.Connection, collection_id: int, added: int) -> int:
    """Count one write to the items, `added` more of them; return the new `seq`."""
    row = db.execute(
        "UPDATE collections SET seq = seq + 1, item_count = item_count + ? WHERE id = ? RETURNING seq",
        (added, collection_id),
    ).fetchone()
    return int(row[0])
