"""Labels of stored items: written in place, so that vectors, their order and the index stay as they are.

The collection's count of writes goes up all the same: what filters let through is remembered by that count.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.errors import FailedPrecondition, LikewiseError, NotFound
from likewise_server.store import catalog, items, schema, vectors
from likewise_server.store.items import Change
from likewise_server.store.prepared import MAX_TEXT_BYTES, check_text, encode_attributes
from likewise_server.store.texts import checksum
from likewise_server.store.types import Outcome

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from likewise_server.store.types import NewLabel


def check(labels: Sequence[NewLabel]) -> None:
    """Raise InvalidArgument, or OutOfRange for their size, for what no item can have."""
    for new in labels:
        if new.label:
            check_text(new.label, "label", MAX_TEXT_BYTES)
        encode_attributes(new.attributes)


def relabel(
    db: sqlite3.Connection, collection_id: int, labels: Sequence[NewLabel]
) -> tuple[list[Outcome | LikewiseError], Change | None]:
    """Write labels, the later of two for one item last; None where nothing was written. See `Store.relabel`."""
    collection = catalog.find_id(db, collection_id)
    stored = items.contents(db, collection_id, [new.id for new in labels])
    outcomes: list[Outcome | LikewiseError] = []
    written: dict[int, tuple[str | None, str]] = {}  # label and attributes, by vid
    others: dict[int, tuple[str, str, str]] = {}  # id, URI and content hash, likewise
    for new in labels:
        was = stored.get(new.id)
        if was is None:
            outcomes.append(NotFound(f"There is no item {new.id!r} in {collection.name!r}."))
            continue
        vid, label, attributes, *rest, intact = was
        if not intact:
            outcomes.append(items.damage(new.id))
            continue
        label, attributes = written.get(vid, (label, attributes))
        if not _is_as_read(new, label, attributes, rest):
            outcomes.append(FailedPrecondition(f"The item {new.id!r} has changed since it was read. Read it again."))
            continue
        try:
            merged = encode_attributes(_merged(schema.parsed(attributes, f"Item {new.id!r}"), new.attributes))
        except LikewiseError as error:  # too large, with those it has
            outcomes.append(error)
            continue
        same = (label, attributes) == (new.label, merged)
        outcomes.append(Outcome.UNCHANGED if same else Outcome.UPDATED)
        if not same:
            written[vid] = new.label, merged
            others[vid] = new.id, rest[0], rest[1]
    if not written:
        return outcomes, None
    now = time.time()
    db.executemany(
        "UPDATE items SET label = ?, attributes = ?, updated_at = ?, text_crc = ? WHERE vid = ?",
        [(*texts, now, checksum(others[vid][0], *texts, *others[vid][1:]), vid) for vid, texts in written.items()],
    )
    none = np.empty(0, np.int64)
    seq = catalog.touch(db, collection_id, 0)
    return outcomes, Change(collection_id, seq, none, np.empty((0, collection.dim), np.float32), none)


def _is_as_read(new: NewLabel, label: str | None, attributes: str, rest: list[Any]) -> bool:
    """Compare what was read with what is there: the contents, as clocks may step back."""
    read = new.as_read
    if read is None:
        return True
    uri, content_hash, data = rest
    return (read.label, encode_attributes(read.attributes), read.uri, read.content_hash) == (
        label,
        attributes,
        uri,
        content_hash,
    ) and (read.vector is None or vectors.as_stored(read.vector) == data)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (old | new).items() if value is not None or name not in new}
