"""The audit log's files: rotated, private, bounded, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

from likewise_server.audit import KEPT, Audit


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_full_files_are_set_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        audit = Audit(tmp_path, 1000)
        audit.note(who="me", number=number, filler="x" * 900)
        audit.close()
    kept = [tmp_path / "audit.jsonl", *(tmp_path / f"audit.jsonl.{n}" for n in range(1, KEPT + 1))]
    assert [lines(path)[0]["number"] for path in kept] == list(range(KEPT + 2, 1, -1))
    assert sorted(tmp_path.iterdir()) == kept
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)


def test_a_line_holds_whatever_names_hold(tmp_path: Path) -> None:
    audit = Audit(tmp_path, 10_000)
    audit.note(who="me", collection='a\n{"who": "root"}', code="OK")
    audit.close()
    [line] = lines(tmp_path / "audit.jsonl")
    assert (line["who"], line["collection"]) == ("me", 'a\n{"who": "root"}')


def test_what_cannot_be_written_is_told_of_later(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    audit = Audit(folder, 10_000)  # not there yet: writing fails
    audit.note(who="me")
    audit.note(who="me")
    audit._write()
    folder.mkdir()
    audit.note(who="you")
    audit.close()
    assert [(line.get("who"), line.get("lost")) for line in lines(folder / "audit.jsonl")] == [("you", None), (None, 2)]


def test_none_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    audit = Audit(tmp_path, 0)
    audit.note(who="me")
    audit.refuse(who="me")
    audit.close()
    assert not list(tmp_path.iterdir())
