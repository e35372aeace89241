"""Derived files and rows are damaged by hand: answers stay right, and fsck says what is wrong."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from contract.store_model import Model, check_search
from likewise_server.errors import FailedPrecondition, Internal, ResourceExhausted
from likewise_server.store import NewItem, open_store
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUERIES = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A closed store in tmp_path with one segment, and what it holds."""
    rng = np.random.default_rng(0)
    made = Model("l2")
    items = [NewItem(f"i{n}", rng.normal(size=4).astype(np.float32), "x") for n in range(50)]
    with EmbeddedStore(tmp_path) as store:
        store.create_collection("c", dim=4, metric="l2", fingerprint="f")
        store.upsert("c", items, fingerprint="f")
        store.save_head("c", "h", "knn", {}, b"blob")
    for item in items:
        made.upsert(item)
    return made


def segment(data: Path) -> Path:
    (file,) = (data / "segments").iterdir()
    return file


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


def remove_folder(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()


def no_file(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, remove, remove_folder, no_file])
def test_a_bad_segment_is_set_aside_and_rebuilt(
    tmp_path: Path, model: Model, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    file = segment(tmp_path)
    damage(file)
    with EmbeddedStore(tmp_path) as store, caplog.at_level(logging.ERROR):
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)
        assert "rebuilt from the database" in caplog.text
    quarantined = [path.name for path in (tmp_path / "quarantine").iterdir()]
    assert [name.endswith(file.name) for name in quarantined] == [True] * (damage not in {remove, remove_folder})
    assert segment(tmp_path).name != file.name
    with EmbeddedStore(tmp_path) as store:
        assert store.fsck().problems == []


def test_fsck_finds_a_bad_segment_and_repairs_it(tmp_path: Path, model: Model) -> None:
    flip_a_bit(segment(tmp_path))
    (tmp_path / "segments" / "1-left.segment").write_bytes(b"")
    with EmbeddedStore(tmp_path) as store:
        (tmp_path / "segments" / "1-new.segment").write_bytes(b"")
        (contents, leftover) = store.fsck().problems
        assert "its contents are not what was written" in contents
        assert "1-new.segment: no collection uses this file" in leftover
        report = store.fsck(repair=True)
        assert len(report.repaired) == 2
        assert store.fsck().ok
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)


def test_fsck_names_damaged_rows_and_searches_go_on_without_them(tmp_path: Path, model: Model) -> None:
    with closing(sqlite3.connect(tmp_path / "likewise.db", isolation_level=None)) as db:
        db.execute("UPDATE vectors SET data = zeroblob(16) WHERE vid = 3")
        db.execute("DELETE FROM vectors WHERE vid = 5")
        db.execute("UPDATE collections SET item_count = 7")
        db.execute("UPDATE heads SET data = x'00'")
        db.execute("DELETE FROM segments")
    del model.items["i2"], model.items["i4"]
    with EmbeddedStore(tmp_path) as store:
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)
        with pytest.raises(Internal, match="'i2' is damaged"):
            store.get("c", ["i2"], vectors=True)
        with pytest.raises(Internal):
            store.labelled("c")
        with pytest.raises(Internal):
            store.mean_vector("c")
        with pytest.raises(Internal, match="'h' is damaged"):
            store.get_head("c", "h")
        problems = "\n".join(store.fsck("c").problems)
        for part in ("says 7 items and has 50", "'i2' is damaged", "'i4' has no vector", "head 'h' is damaged"):
            assert part in problems
        store.fsck(repair=True)
        assert store.count("c") == 50
        again = [NewItem(i, np.ones(4, np.float32), "x") for i in ("i2", "i4")]
        assert store.upsert("c", again, fingerprint="f") == ["updated", "updated"]
        store.delete_head("c", "h")
        assert store.fsck().problems == []


def test_fsck_finds_an_index_that_drifted(tmp_path: Path, model: Model) -> None:
    with EmbeddedStore(tmp_path) as store:
        store.search("c", QUERIES, 1)
        index = store._indexes.peek(1)
        assert index is not None
        assert index.snapshot is not None
        index.snapshot.segments[0].alive[4] = False
        assert "index in memory differs" in store.fsck().problems[0]
        store.fsck(repair=True)
        assert store.fsck().ok
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)


def test_a_database_of_the_future_is_left_alone(tmp_path: Path, model: Model) -> None:
    assert model.items
    with closing(sqlite3.connect(tmp_path / "likewise.db", isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(FailedPrecondition, match="format 99"):
        open_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "likewise.db", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    open_store(tmp_path).close()


def test_a_file_that_is_no_database_is_an_error_and_frees_the_lock(tmp_path: Path) -> None:
    (tmp_path / "likewise.db").write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(Internal, match="not a database"):
            open_store(tmp_path)


def test_a_full_disk_is_said_and_leaves_everything_as_it_was(tmp_path: Path, model: Model) -> None:
    with EmbeddedStore(tmp_path) as store:
        store.search("c", QUERIES, 1)
        pages = store._writer.call(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        big = [NewItem(f"big{n}", np.ones(4, np.float32), attributes={"x": "y" * 5000}) for n in range(50)]
        with pytest.raises(ResourceExhausted, match="disk is full"):
            store.upsert("c", big, fingerprint="f")
        assert store.healthy()
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)
        store._writer._connection.execute("PRAGMA max_page_count = 1000000")
        assert store.upsert("c", big, fingerprint="f") == ["created"] * 50
        assert store.fsck().problems == []


def test_a_failed_checkpoint_leaves_no_file(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with EmbeddedStore(tmp_path) as store:
        new = NewItem("new", np.ones(4, np.float32), "x")
        store.upsert("c", [new], fingerprint="f")
        model.upsert(new)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted):
            store.checkpoint()
        monkeypatch.undo()
        assert len(list((tmp_path / "segments").iterdir())) == 1
        check_search(model, store.search("c", QUERIES, 60), QUERIES, 60)


def test_one_directory_takes_one_store(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "deep" / "data"):
        assert (tmp_path / "deep" / "data").stat().st_mode & 0o777 == 0o700
        with pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()}"):
            open_store(tmp_path / "deep" / "data")
        code = f"from likewise_server.store import open_store; open_store({str(tmp_path / 'deep' / 'data')!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()}" in other.stderr
    open_store(tmp_path / "deep" / "data").close()
