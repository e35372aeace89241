"""Databases of older formats are brought up to date and answer as before."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import NewItem
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.filter_sql import where_clause
from likewise_server.store.filters import parse
from likewise_server.store.schema import MIGRATIONS, PAGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

ROWS = np.random.default_rng(0).normal(size=(30, 4)).astype("<f4")


def format_1(path: Path) -> None:
    """A database as the first release made it, with one collection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1;")
        db.execute("INSERT INTO collections VALUES (1, 'old', 4, 'dot', 'f', 'b', 'r', 1.0, 1, 30)")
        for n, row in enumerate(ROWS):
            db.execute(
                "INSERT INTO items (collection_id, ext_id, label, attributes, uri, content_hash, updated_at)"
                " VALUES (1, ?, ?, ?, '', '', 1.0)",
                (f"i{n:02}", "cat" if n % 2 else None, f'{{"year":{2000 + n}}}'),
            )
            data = row.tobytes()
            db.execute("INSERT INTO vectors (vid, data, crc) VALUES (?, ?, ?)", (n + 1, data, zlib.crc32(data)))


def test_a_database_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    format_1(tmp_path / "likewise.db")
    nearest = [f"i{n:02}" for n in np.argsort(-(ROWS @ ROWS[3]), kind="stable")]
    for _ in range(2):
        with EmbeddedStore(tmp_path) as store:
            info = store.get_collection("old")
            assert (info.count, info.index, info.indexed, info.storage) == (30, "auto", (), "fp32")
            assert [hit.item.id for hit in store.search("old", ROWS[3:4], 30).hits[0]] == nearest
            assert store.count("old", "year >= 2010 and label = 'cat'") == 10
            assert store.create_collection(
                "old", dim=4, metric="dot", fingerprint="f", backbone="b", request_id="r"
            ) == store.get_collection("old")
            assert store.fsck().ok
    with EmbeddedStore(tmp_path) as store:
        assert store.alter_collection("old", indexed=["year"]).indexed == ("year",)
        assert store.count("old", "year >= 2010 and label = 'cat'") == 10
        assert store.upsert("old", [NewItem("new", ROWS[0], "cat", {"year": 2010})], fingerprint="f") == ["created"]
        assert store.count("old", "year = 2010") == 2
        condition, values = where_clause(parse("year = 1 or year > 2 and label = 'cat'"), ["year"])
        with store._reads.transaction() as db:  # a connection that was open before
            plan = db.execute(f"EXPLAIN QUERY PLAN SELECT vid FROM items WHERE collection_id = 1{condition}", values)  # noqa: S608
            assert plan.fetchone()[3] == "MULTI-INDEX OR"
        assert store.fsck().ok


def test_vids_go_on_after_what_was_deleted(tmp_path: Path) -> None:
    format_1(tmp_path / "likewise.db")
    with EmbeddedStore(tmp_path) as store:
        store.delete("old", where="id is not null")
    with EmbeddedStore(tmp_path) as store:
        store.upsert("old", [NewItem(f"{n}", ROWS[n]) for n in range(5)], fingerprint="f")
    with closing(sqlite3.connect(tmp_path / "likewise.db")) as db:
        assert [vid for (vid,) in db.execute("SELECT vid FROM items ORDER BY vid")] == [31, 32, 33, 34, 35]


def test_new_databases_have_pages_that_vectors_fit_into(tmp_path: Path) -> None:
    EmbeddedStore(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "likewise.db")) as db:
        assert db.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
