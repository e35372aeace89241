"""Many callers at once, and what becomes of them when the writer fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from likewise_server.errors import Internal, InvalidArgument, LikewiseError, NotFound
from likewise_server.store import NewItem, NewLabel, index, maintenance, policy, searching
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.items import Change

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

DIM = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path) as opened:
        opened.create_collection("c", dim=DIM, fingerprint="f")
        yield opened


def item(item_id: str, *values: float, label: str | None = None) -> NewItem:
    return NewItem(item_id, np.array([*values, *[1.0] * (DIM - len(values))], np.float32), label)


def test_the_first_search_waits_for_a_collection_that_takes_long_to_read(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = maintenance.Maintenance._load

    def slow(*arguments: Any) -> None:
        time.sleep(0.3)
        load(*arguments)

    monkeypatch.setattr(searching, "PATIENCE_S", 0.1)
    monkeypatch.setattr(maintenance.Maintenance, "_load", slow)
    store.upsert("c", [item("a", 1.0), item("b", -1.0)], fingerprint="f")
    [hits] = store.search("c", np.ones((1, DIM), np.float32), 1).hits
    assert hits[0].item.id == "a"


def test_searches_see_whole_writes_while_everything_happens(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair is written together, so that a search must see both halves, and of the same version."""
    monkeypatch.setattr(policy, "SEAL", 60)  # so that background checkpoints swap segments all the while
    monkeypatch.setattr(policy, "MIN_DEAD", 60)
    pairs, rounds = 20, 12
    stop = threading.Event()

    def write(worker: int) -> None:
        for version in range(rounds):
            for pair in range(worker, pairs, 4):
                label = str(version)
                items = [item(f"{pair}-{half}", pair, version, label=label) for half in "ab"]
                assert store.upsert("c", items, fingerprint="f") == ["created" if version == 0 else "updated"] * len(
                    items
                )
                relabelled = [NewLabel(each.id, f"{label}, relabelled") for each in items]
                assert store.relabel("c", relabelled) == ["updated"] * len(items)
                query = np.array([[pair, version, *[1] * (DIM - 2)]], np.float32)
                own = {hit.item.id for hit in store.search("c", query, 200).hits[0]}
                assert {f"{pair}-a", f"{pair}-b"} <= own

    def search() -> int:
        rng = np.random.default_rng()
        done = 0
        while not stop.is_set():
            for where in ("", "label >= '0'"):
                hits = store.search("c", rng.normal(size=(1, DIM)).astype(np.float32), 1000, where=where).hits[0]
                seen = {hit.item.id: hit.item.label for hit in hits}
                assert len(seen) == len(hits)
                assert all(seen[i[:-1] + "a"] == seen[i[:-1] + "b"] for i in seen)
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        searchers = [pool.submit(search) for _ in range(3)]
        try:
            list(pool.map(write, range(4)))
        finally:
            stop.set()
        assert all(searcher.result() for searcher in searchers)
    assert store.count("c") == 2 * pairs
    assert store.get_collection("c").bytes_by_part["segments"] > 0
    assert store.fsck().problems == []


def test_waiting_writes_are_committed_together_and_fail_alone(store: EmbeddedStore) -> None:
    started, go = threading.Event(), threading.Event()
    commits: list[str] = []

    def block(_: sqlite3.Connection) -> None:
        started.set()
        go.wait(10)

    def fail(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM collections")  # must be undone, and only this
        raise InvalidArgument("no")

    with ThreadPoolExecutor(40) as pool:
        first = pool.submit(store._writer.call, block)
        started.wait(10)
        store._writer._connection.set_trace_callback(commits.append)
        writes = [pool.submit(store.upsert, "c", [item(str(n))], fingerprint="f") for n in range(20)]
        failing = pool.submit(store._writer.call, fail)
        while store._writer._queue.qsize() < 21:
            time.sleep(0.001)
        go.set()
        first.result(10)
        assert [write.result(10) for write in writes] == [["created"]] * 20
        with pytest.raises(InvalidArgument, match="no"):
            failing.result(10)
    assert commits.count("COMMIT") == 2  # the blocked one, and all the others
    assert store.count("c") == 20


def test_a_dead_writer_fails_every_later_call(store: EmbeddedStore, caplog: pytest.LogCaptureFixture) -> None:
    def die(_: sqlite3.Connection) -> None:
        raise SystemExit

    store.upsert("c", [item("a")], fingerprint="f")
    with pytest.raises(Internal, match="Restart the server"):
        store._writer.call(die)
    assert not store.healthy()
    with pytest.raises(Internal, match="Restart the server"):
        store.upsert("c", [item("b")], fingerprint="f")
    assert store.count("c") == 1  # reading still works
    assert "writer thread stopped" in caplog.text


def test_an_index_that_cannot_follow_is_loaded_anew(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.upsert("c", [item("a", 5)], fingerprint="f")
    query = np.ones((1, DIM), np.float32)
    store.search("c", query, 1)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(index, "searchable", fail)
        assert store.upsert("c", [item("b")], fingerprint="f") == ["created"]
    assert [hit.item.id for hit in store.search("c", query, 5).hits[0]] == ["b", "a"]
    assert "loaded anew" in caplog.text


def test_collections_deleted_under_way_are_not_found(store: EmbeddedStore) -> None:
    query = np.ones((1, DIM), np.float32)
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            try:
                store.upsert("gone", [item("a"), item("b")], fingerprint="f")
                hits = store.search("gone", query, 5).hits[0]
                assert len(hits) in {0, 2}
                store.checkpoint("gone")
            except NotFound:
                pass

    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(use) for _ in range(2)]
        for _ in range(30):
            store.create_collection("gone", dim=DIM, fingerprint="f")
            time.sleep(0.01)
            store.delete_collection("gone")
        stop.set()
        for user in users:
            user.result()
    report = store.fsck()
    assert report.problems == []
    with pytest.raises(LikewiseError):
        store.get_collection("gone")


def test_a_write_during_a_load_counts_once_whether_the_load_saw_it_or_not() -> None:
    rows = np.eye(2, dtype=np.float32)
    nothing = np.empty(0, np.int64)
    changes = [Change(1, seq, np.array([seq]), rows[seq - 1 : seq], nothing) for seq in (1, 2)]
    loaded = index.CollectionIndex(2, "dot", "fp32")
    loaded.begin_load()
    for change in changes:
        loaded.apply(change)
    loaded.finish_load(1, [], np.array([1]), np.array([1]), rows[:1])
    assert loaded.snapshot is not None
    assert loaded.snapshot.seq == 2
    np.testing.assert_array_equal(loaded.snapshot.delta.vids, [1, 2])
    np.testing.assert_array_equal(loaded.snapshot.delta.rows, rows)
