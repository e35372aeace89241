"""A text that is not what was written is never handed out; fsck names it, and writing the item again mends it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise_server.errors import Internal, LikewiseError
from likewise_server.store import NewItem, NewLabel
from likewise_server.store.backup import backup, restore
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.texts import checksum, intact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ITEMS = [NewItem(f"i{n}", np.eye(4, dtype=np.float32)[n], "cat", {"n": n}, f"u{n}", f"h{n}") for n in range(4)]
DAMAGE = {
    "label": "UPDATE items SET label = 'bat' WHERE ext_id = 'i1'",
    "no label": "UPDATE items SET label = NULL WHERE ext_id = 'i1'",
    "attributes": "UPDATE items SET attributes = '{\"n\":5}' WHERE ext_id = 'i1'",
    "uri": "UPDATE items SET uri = 'v1' WHERE ext_id = 'i1'",
    "content hash": "UPDATE items SET content_hash = 'h3' WHERE ext_id = 'i1'",
    "checksum": "UPDATE items SET text_crc = text_crc + 1 WHERE ext_id = 'i1'",
}


def filled(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        store.create_collection("c", dim=4, fingerprint="f")
        store.upsert("c", ITEMS, fingerprint="f")
        store.save_head("c", "h", "ncm", {"classes": ["a"]}, b"head")


def changed(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "likewise.db")) as db:
        assert db.execute(statement).rowcount == 1
        db.commit()


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_item_is_not_handed_out_until_it_is_written_again(tmp_path: Path, what: str) -> None:
    filled(tmp_path)
    changed(tmp_path, DAMAGE[what])
    with EmbeddedStore(tmp_path) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.get("c", ["i1"]),
            lambda: store.list_items("c", page_size=10),
            lambda: store.search("c", ITEMS[1].vector[np.newaxis], 2),
        ]
        if what != "no label":
            calls.append(lambda: store.labelled("c"))
        for call in calls:
            with pytest.raises(Internal, match="'i1' is damaged"):
                call()
        assert [item.id for item in store.get("c", ["i0", "i2"]) if item] == ["i0", "i2"]
        (outcome,) = store.relabel("c", [NewLabel("i1", "dog")])
        assert isinstance(outcome, LikewiseError), "a new checksum would hide it"
        assert store.fsck().problems == ["collection 'c': the texts of item 'i1' are damaged; add it again"]
        assert store.upsert("c", [ITEMS[1]], fingerprint="f") == ["updated"]
        assert store.fsck().problems == []
        (item,) = store.get("c", ["i1"])
        assert item is not None
        assert (item.label, item.attributes, item.uri) == ("cat", {"n": 1}, "u1")


def test_labels_set_in_place_are_checked_as_well(tmp_path: Path) -> None:
    filled(tmp_path)
    with EmbeddedStore(tmp_path) as store:
        assert store.relabel("c", [NewLabel("i1", "dog", {"by": "me"}), NewLabel("i2", None)]) == ["updated"] * 2
        assert store.fsck().problems == []
    changed(tmp_path, "UPDATE items SET label = 'bog' WHERE ext_id = 'i1'")
    with EmbeddedStore(tmp_path) as store, pytest.raises(Internal, match="'i1' is damaged"):
        store.get("c", ["i1"])


def test_a_damaged_description_of_a_head_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    changed(tmp_path, "UPDATE heads SET meta = replace(meta, '\"a\"', '\"b\"')")
    with EmbeddedStore(tmp_path) as store:
        for call in (lambda: store.get_head("c", "h"), lambda: store.list_heads("c")):
            with pytest.raises(Internal, match="Version 1 of the head 'h' is damaged"):
                call()
        assert store.fsck().problems == ["collection 'c': version 1 of head 'h' is damaged; train it again"]


@pytest.mark.parametrize("column", ["metric = 'dot'", "fingerprint = 'g'", "dim = 5", "storage = 'fp16'"])
def test_a_damaged_collection_is_found(tmp_path: Path, column: str) -> None:
    filled(tmp_path)
    changed(tmp_path, f"UPDATE collections SET {column}")  # noqa: S608
    with EmbeddedStore(tmp_path) as store:
        with pytest.raises(Internal, match="the collection 'c' is damaged"):
            store.search("c", ITEMS[1].vector[np.newaxis], 2)
        assert any("'c' is damaged" in line for line in store.fsck().problems)


def test_a_backup_tells_and_keeps_what_is_damaged_and_a_new_name_is_no_damage(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    changed(tmp_path / "data", DAMAGE["uri"])
    made = backup(tmp_path / "data", tmp_path / "out")
    assert made.problems == ["collection 'c': the texts of item 'i1' are damaged; add the item again"]
    restore(tmp_path / "out", tmp_path / "data", "c", name="d")
    with EmbeddedStore(tmp_path / "data") as store:
        assert store.get_collection("d").count == 4
        assert store.fsck("d").problems == ["collection 'd': the texts of item 'i1' are damaged; add it again"]


def test_the_checksum_tells_fields_apart() -> None:
    assert checksum("a", None, "b") != checksum("a", "", "b")
    assert checksum("ab", "c") != checksum("a", "bc")
    assert intact(None, "anything")
    assert not intact("x", "anything")
