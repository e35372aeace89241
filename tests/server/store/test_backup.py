"""Backups are of one moment, whole or not there, and come back as they were; kills are in test_crashes.py."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise import Client
from likewise_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LikewiseError,
    NotFound,
)
from likewise_server.store import NewItem
from likewise_server.store.backup import backup, restore, verify
from likewise_server.store.embedded import EmbeddedStore
from support.lives import CYCLE, Hand, facts, script
from support.server import start_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with collections `c` and `d`, heads and indexed attributes; its store is closed."""
    with EmbeddedStore(tmp_path / "data") as store:
        for step in script(0, len(CYCLE) - 8):
            Hand(store, tmp_path / "data").do(step)
    return tmp_path / "data"


def everything(data: Path) -> dict[str, object]:
    with EmbeddedStore(data) as store:
        assert store.fsck().problems == []
        return facts(store)


def test_what_comes_back_is_what_was_there(tmp_path: Path, data: Path) -> None:
    made = backup(data, tmp_path / "all")
    assert [each.name for each in made.collections] == ["c", "d"]
    assert (tmp_path / "all").stat().st_mode & 0o777 == 0o600
    assert verify(tmp_path / "all") == made
    restore(tmp_path / "all", tmp_path / "new" / "data")
    assert everything(tmp_path / "new" / "data") == everything(data)
    with EmbeddedStore(tmp_path / "new" / "data") as store, EmbeddedStore(data) as old:
        for name in ("c", "d"):
            before, after = old.get_collection(name), store.get_collection(name)
            assert (before.indexed, before.created_at, before.fingerprint) == (
                after.indexed,
                after.created_at,
                after.fingerprint,
            )


def test_one_collection_comes_back_beside_others(tmp_path: Path, data: Path) -> None:
    backup(data, tmp_path / "one", "c")
    before = everything(data)
    with pytest.raises(AlreadyExists, match="--as another name"):
        restore(tmp_path / "one", data)
    restore(tmp_path / "one", data, name="again")
    assert everything(data) == {**before, "again": before["c"]}
    with EmbeddedStore(data) as store:
        hits = store.search("again", np.ones((1, 4), np.float32), 5).hits
        assert hits == store.search("c", np.ones((1, 4), np.float32), 5).hits
        store.delete_collection("c")
    restore(tmp_path / "one", data)
    assert everything(data) == {**before, "again": before["c"]}


def test_one_collection_comes_back_out_of_several(tmp_path: Path, data: Path) -> None:
    backup(data, tmp_path / "all")
    with pytest.raises(InvalidArgument, match="name the one"):
        restore(tmp_path / "all", tmp_path / "new", name="x")
    with pytest.raises(NotFound, match="it has 'c', 'd'"):
        restore(tmp_path / "all", tmp_path / "new", "e")
    restore(tmp_path / "all", tmp_path / "new", "d", name="x")
    assert everything(tmp_path / "new") == {"x": everything(data)["d"]}


def test_a_restore_that_fails_midway_leaves_nothing(tmp_path: Path, data: Path) -> None:
    backup(data, tmp_path / "all")
    with EmbeddedStore(tmp_path / "new") as store:
        store.create_collection("d", dim=4, fingerprint="f")
    with pytest.raises(AlreadyExists):
        restore(tmp_path / "all", tmp_path / "new")
    assert list(everything(tmp_path / "new")) == ["d"]


def test_mistakes_are_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(FailedPrecondition, match="not the --data directory"):
        backup(tmp_path, tmp_path / "out")
    with pytest.raises(NotFound, match="no collection 'e'"):
        backup(data, tmp_path / "out", "e")
    assert not list(tmp_path.glob("out*")), "what failed leaves nothing"
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AlreadyExists, match="Remove it"):
        backup(data, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    for file, why in (
        ("out", "not a database|no backup"),
        ("nowhere", "There is no backup"),
        ("data/likewise.db", "no backup"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            restore(tmp_path / file, tmp_path / "new")
    backup(data, tmp_path / "whole")
    with EmbeddedStore(data), pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()} on "):
        restore(tmp_path / "whole", data, "c", name="x")
    with pytest.raises(InvalidArgument, match="control character"):
        restore(tmp_path / "whole", data, "c", name="a\nb")
    with closing(sqlite3.connect(tmp_path / "whole", isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LikewiseError, match="damaged"):
        verify(tmp_path / "whole")


def test_a_part_that_a_kill_left_is_overwritten_and_one_in_use_is_not(tmp_path: Path, data: Path) -> None:
    (tmp_path / "out.part").write_bytes(b"left" * 5000)
    backup(data, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    reached = threading.Event()
    refused: list[str] = []

    def second(_done: int, _total: int) -> None:
        if not reached.is_set():
            reached.set()
            with pytest.raises(FailedPrecondition, match="under way"):
                backup(data, tmp_path / "more")
            refused.append("yes")

    backup(data, tmp_path / "more", progress=second)
    assert refused
    assert verify(tmp_path / "more").collections


def test_damage_in_the_source_is_kept_and_named(tmp_path: Path, data: Path) -> None:
    with closing(sqlite3.connect(data / "likewise.db", isolation_level=None)) as db:
        (vid, ext_id) = db.execute("SELECT vid, ext_id FROM items WHERE collection_id = 1 LIMIT 1").fetchone()
        db.execute("UPDATE vectors SET data = zeroblob(16) WHERE vid = ?", (vid,))
        db.execute("UPDATE heads SET data = x'00' WHERE version = 1")
    made = backup(data, tmp_path / "out")
    assert [problem for problem in made.problems if f"{ext_id!r} is damaged" in problem]
    assert [problem for problem in made.problems if "head 'h' is damaged" in problem]
    restore(tmp_path / "out", tmp_path / "new")
    with EmbeddedStore(tmp_path / "new") as store:
        assert any(f"{ext_id!r} is damaged" in problem for problem in store.fsck().problems), (
            "never passed off as sound"
        )


def test_a_file_that_cannot_grow_is_said(tmp_path: Path, data: Path) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    code = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path; from likewise_server.store.backup import backup\n"
        "from likewise_server.errors import LikewiseError\n"
        f"try: backup(Path({str(data)!r}), Path({str(tmp_path / 'out')!r}))\n"
        "except LikewiseError as error: print(error.code.name, error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", limited + code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(("UNAVAILABLE The disk failed", "RESOURCE_EXHAUSTED The disk is full")), done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_backup_beside_a_server_that_is_written_to_is_of_one_moment(tmp_path: Path) -> None:
    """Each write adds one item to `a` and then the same to `b`; both were acknowledged before the count was read."""
    running = start_server(tmp_path / "data")
    acknowledged = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        with Client(running.address) as writer:
            a, b = writer.collection("a"), writer.collection("b")
            while not stop.is_set():
                for each in (a, b):
                    each.add_vectors([f"{acknowledged:06}"], np.full((1, 4), acknowledged + 1, np.float32))
                acknowledged += 1

    with Client(running.address) as lw:
        for name in ("a", "b"):
            lw.create_collection(name, dim=4, metric="l2")
        thread = threading.Thread(target=write)
        thread.start()
        try:
            command = [sys.executable, "-m", "likewise.cli", "collections"]
            for number in range(3):
                before = acknowledged
                made = subprocess.run(
                    [*command, "backup", "--all", str(tmp_path / f"out{number}"), "--data", str(tmp_path / "data")],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert made.returncode == 0, made.stderr
                a, b = verify(tmp_path / f"out{number}").collections
                assert before <= b.items <= a.items <= b.items + 1, "of one moment, with all from before"
        finally:
            stop.set()
            thread.join()
        taken = subprocess.run(
            [*command, "restore", str(tmp_path / "out0"), "--data", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 1
        assert "in use by process" in taken.stderr
    assert running.stop() == 0
    done = subprocess.run(
        [*command, "restore", str(tmp_path / "out2"), "--data", str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with EmbeddedStore(tmp_path / "new") as store:
        ids = [item.id for item in store.list_items("b", page_size=1000)[0]]
        assert ids[: b.items] == [f"{n:06}" for n in range(min(b.items, 1000))]
        assert store.fsck().problems == []


def test_a_backup_does_not_stop_writes(tmp_path: Path, data: Path) -> None:
    with EmbeddedStore(data) as store:
        written: list[object] = []

        def write(_done: int, _total: int) -> None:
            item = NewItem(f"during {len(written)}", np.ones(4, np.float32))
            written.append(store.upsert("c", [item], fingerprint="f"))

        made = backup(data, tmp_path / "out", progress=write)
        assert written == [["created"]] * 2
        assert store.count("c") == made.collections[0].items + 2, "what came during it is not in it"
