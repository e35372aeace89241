"""Indexes in SQLite over declared attributes: one for each name, shared by all collections that declare it.

A name is pasted into SQL, because SQLite uses an index on an expression only where a query has that very
expression. `checked` lets nothing through that could end the quotes it stands in.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from likewise_server.errors import InvalidArgument
from likewise_server.store.filters import BUILTIN

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

MAX_INDEXED = 16
MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_PREFIX = "items_attribute_"
_STATISTICS = "1000000 100000 1000 1000"
"""Rows altogether, in a collection, with a value, and of one type: what SQLite's planner is told of each index."""


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """Return dotted names of attributes, each once, in their order; raises InvalidArgument."""
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > MAX_INDEXED:
        raise InvalidArgument(f"{len(distinct)} indexed attributes are too many; the limit is {MAX_INDEXED}.")
    for name in distinct:
        if name in BUILTIN:
            raise InvalidArgument(f"{name!r} is no attribute; label and id are always indexed, uri never.")
        if len(name) > MAX_NAME or not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name[:MAX_NAME]!r} cannot be indexed: the name of an indexed attribute has letters from a to z,"
                f" digits, _ and -, dots between its parts, and {MAX_NAME} characters at most."
            )
    return distinct


def path_of(name: str) -> tuple[str, ...]:
    """Return the parts of a dotted name."""
    return tuple(name.split("."))


def expressions(path: Sequence[str], table: str = "") -> tuple[str, str]:
    """Return the SQL of the value and of the type of a checked attribute, as its index has them."""
    quoted = "'$" + "".join(f'."{part}"' for part in path) + "'"
    return f"json_extract({table}attributes, {quoted})", f"json_type({table}attributes, {quoted})"


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Make the indexes that some collection declares and drop those that none does any longer."""
    declared = db.execute("SELECT DISTINCT value FROM collections, json_each(indexed)")
    wanted = {_PREFIX + hashlib.sha256(name.encode()).hexdigest()[:16]: name for (name,) in declared}
    there = {
        index
        for (index,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'items'")
        if index.startswith(_PREFIX)
    }
    if there == wanted.keys():
        return
    for index in there - wanted.keys():
        db.execute(f"DROP INDEX {index}")
    for index in wanted.keys() - there:
        value, kind = expressions(path_of(wanted[index]))
        # Items without the attribute take no room in it. With the type beside the value, no filter reads JSON.
        db.execute(f"CREATE INDEX {index} ON items (collection_id, {value}, {kind}) WHERE {kind} IS NOT NULL")
        db.execute("INSERT INTO sqlite_stat1 VALUES ('items', ?, ?)", (index, _STATISTICS))
    db.execute("ANALYZE sqlite_schema")  # has this connection read the statistics; others do at their next query
