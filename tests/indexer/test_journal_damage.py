"""A damaged journal is named, or knows too little; never does it say that something was sent that was not."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from likewise.errors import FailedPrecondition
from likewise_indexer.journal import Journal, Row

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {f"photo-{n:04}.jpg": Row(f"photo-{n:04}.jpg", 1000 + n, 10**18 + n, f"{n:064x}", "{}") for n in range(400)}


def test_damage_is_named_or_costs_only_uploading_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "sound") as journal:
        journal.record(ROWS.values())
    sound = (tmp_path / "sound").read_bytes()
    assert len(sound) > 20_000
    luck = random.Random(0)
    refused = whole = 0
    for number in range(150):
        data = bytearray(sound)
        at = luck.randrange(len(data))
        if number % 3:
            data[at] ^= 1 << luck.randrange(8)
        else:
            del data[at:]
        file = tmp_path / f"damaged-{number}"
        file.write_bytes(data)
        try:
            with Journal(file) as journal:
                found = journal.look_up(list(ROWS))
                journal.record([Row("new", 1, 1, "0", "{}")])
        except FailedPrecondition:
            refused += 1
        else:
            # What is known of a file counts only if its size, its time and its contents are those written here.
            good = [row for row in found.values() if row == ROWS.get(row.id)]
            whole += len(good) == len(ROWS)
            assert len(found) - len(good) <= 1, "one bit harms one row"
        for left in tmp_path.glob(f"damaged-{number}*"):
            left.unlink()
    assert refused > 30
    assert whole > 10


def test_a_full_disk_is_said_and_costs_no_row(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    with Journal(file) as journal:
        journal.record(list(ROWS.values())[:5])
        (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
        journal._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(FailedPrecondition, match="Look for room"):
            journal.record(ROWS.values())
    with Journal(file) as journal:
        assert journal.look_up(list(ROWS)) == dict(list(ROWS.items())[:5])
        journal.record(ROWS.values())
        assert journal.look_up(list(ROWS)) == ROWS
