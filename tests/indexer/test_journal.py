"""The journal: rows come back, belong to one collection, and to one run at a time."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from likewise.errors import FailedPrecondition
from likewise.results import CollectionInfo
from likewise_indexer.journal import Journal, Row, default_path

PETS = CollectionInfo("pets", 0, 4, "cosine", "tiny", "f1", 1700000000.123456, {})
ROWS = [Row(f"id{i:04}", i, i * 10**9, f"sha{i}", "d") for i in range(1200)]


def test_rows_come_back_after_closing(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "j.sqlite") as journal:
        assert journal.bind(PETS) == ""
        journal.record(ROWS)
    with Journal(tmp_path / "deep" / "j.sqlite") as journal:
        assert journal.bind(PETS) == ""
        found = journal.look_up([row.id for row in ROWS] + ["other"])
        assert list(found.values()) == ROWS
        assert journal.count() == len(ROWS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"created_at": 1700000000.123457}, "created anew"), ({"fingerprint": "f2"}, "another space")],
)
def test_another_collection_of_that_name_empties_it(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.bind(PETS)
        journal.record(ROWS)
        assert reason in journal.bind(dataclasses.replace(PETS, **change))  # type: ignore[arg-type]
        assert journal.count() == 0


def test_fresh_empties_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.bind(PETS)
        journal.record(ROWS)
        assert journal.bind(PETS, fresh=True) == ""
        assert journal.count() == 0


def test_arrivals_are_known_and_the_rest_has_vanished(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record(ROWS)
        assert journal.arrive(["id0001", "id0002", "id0001"]) == [True, True, False]
        pages = list(journal.vanished())
        assert [item_id for page in pages for item_id in page] == [
            r.id for r in ROWS if r.id not in {"id0001", "id0002"}
        ]
        assert len(pages) > 1
        journal.forget(pages[0])
        assert journal.count() == len(ROWS) - len(pages[0])


def test_a_second_run_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    code = (
        "import sys, time; from pathlib import Path; from likewise_indexer.journal import Journal, Row\n"
        f"j = Journal(Path({str(path)!r})); j.record([Row('a', 1, 1, 's', 'd')]); print('open', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(FailedPrecondition, match="another run"):
            Journal(path)
        other.kill()
        other.wait()
    with Journal(path) as journal:
        assert journal.count() == 1


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"JFIF" * 1000)
    with pytest.raises(FailedPrecondition, match="cannot be used as a journal"):
        Journal(tmp_path / "photo.jpg")
    with Journal(tmp_path / "j.sqlite"):
        pass
    with sqlite3.connect(tmp_path / "j.sqlite") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    db.close()
    with pytest.raises(FailedPrecondition, match="another version"):
        Journal(tmp_path / "j.sqlite")


def test_default_path_follows_xdg_and_tells_sources_collections_and_servers_apart(
    state_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = {default_path(*key) for key in (("/a", "c", "s"), ("/b", "c", "s"), ("/a", "d", "s"), ("/a", "c", "t"))}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {state_home / "likewise"}
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path("/a", "c", "s").parent == tmp_path / ".local" / "state" / "likewise"
    assert default_path(os.fsdecode(b"/caf\xe9"), "c", "s").suffix == ".sqlite"
