"""The journal: which items of a source a server has acknowledged, in one SQLite file per source and collection.

A row is written after the server's acknowledgement, never before, so the journal may know too little
but never too much. See docs/adr/0006-the-journal.md.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from likewise.errors import FailedPrecondition
from likewise.results import CollectionInfo

DONE = "done"
FAILED = "failed"
FORMAT = "1"
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT, described TEXT,
    status TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL
) WITHOUT ROWID;
CREATE TEMP TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",  # one run at a time; the kernel lets go when the process dies
    "PRAGMA journal_mode = WAL",
    # A commit survives the death of the process. A power cut may lose the last ones, which costs
    # uploading those again: the server knows the bytes and does not embed them again.
    "PRAGMA synchronous = NORMAL",
)
PAGE = 500  # ids per query


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one item. `described` is `Entry.described()`; size in bytes, mtime in ns."""

    id: str
    size: int
    mtime_ns: int
    sha256: str
    described: str
    status: str = DONE
    code: str = ""
    message: str = ""


class Journal:
    """An open journal. Its methods may be called from any thread, one at a time or not.

    Raises FailedPrecondition where another run has it open, or the file is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def bind(self, collection: CollectionInfo, *, fresh: bool = False) -> str:
        """Make this the journal of a collection; return why it had to be emptied, "" if it had not.

        A collection that was deleted and created again, or is of another space, has none of what is
        written here. `fresh` empties it anyway.
        """
        told = {"created_at": repr(collection.created_at), "fingerprint": collection.fingerprint}
        known = {key: value for key, value in self._meta().items() if key in told}
        reason = ""
        if known and known["created_at"] != told["created_at"]:
            reason = f"the collection {collection.name!r} was created anew since the last run"
        elif known and known != told:
            reason = f"the collection {collection.name!r} is of another space than at the last run"
        with self._using(), self._transaction():
            if reason or fresh:
                self._db.execute("DELETE FROM items")
            self._write_meta(told | {"collection": collection.name})
        return reason

    def look_up(self, ids: Sequence[str]) -> dict[str, Row]:
        """Return the rows of those ids that have one."""
        with self._using():
            return {row.id: row for part in _pages(ids) for row in map(_row, self._select(part))}

    def arrive(self, ids: Sequence[str]) -> list[bool]:
        """Note that ids occur in this run; return for each whether it is the first time."""
        with self._using(), self._transaction():
            insert = "INSERT OR IGNORE INTO seen VALUES (?)"
            return [self._db.execute(insert, (item_id,)).rowcount == 1 for item_id in ids]

    def record(self, rows: Iterable[Row]) -> None:
        """Write rows in one transaction."""
        with self._using(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(astuple, rows))

    def vanished(self) -> Iterator[list[str]]:
        """Yield pages of ids that are written here but did not `arrive` in this run."""
        query = (
            "SELECT id FROM items WHERE id > ? AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.id = items.id)"
            " ORDER BY id LIMIT ?"
        )
        last = ""
        while True:
            with self._using():
                ids = [str(item_id) for (item_id,) in self._db.execute(query, (last, PAGE))]
            if not ids:
                return
            last = ids[-1]
            yield ids

    def forget(self, ids: Sequence[str]) -> None:
        """Remove rows."""
        with self._using(), self._transaction():
            self._db.executemany("DELETE FROM items WHERE id = ?", [(item_id,) for item_id in ids])

    def count(self, status: str = DONE) -> int:
        """Return how many rows have a status."""
        with self._using():
            return int(self._db.execute("SELECT COUNT(*) FROM items WHERE status = ?", (status,)).fetchone()[0])

    def _prepare(self) -> None:
        try:
            for pragma in PRAGMAS:
                self._db.execute(pragma)
            self._db.executescript(SCHEMA)
            version = self._meta().get("format", FORMAT)
            self._write_meta({"format": version})  # takes the lock now, not with the first row
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise FailedPrecondition(f"another run is using the journal {self.path}: wait for it to end") from error
            raise self._unusable(error) from error
        if version != FORMAT:
            raise FailedPrecondition(f"{self.path} is a journal of another version: give another --journal")

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Have the file for one thread; raises FailedPrecondition where it is damaged or the disk is full."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.DatabaseError) -> FailedPrecondition:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return FailedPrecondition(
                f"the journal {self.path} could not be written: {error}. Look for room on its disk and run again: what"
                " the server has is not embedded again."
            )
        return FailedPrecondition(
            f"{self.path} cannot be used as a journal: {error}. Remove it, or give another --journal: a run without one"
            " looks at everything, and the server embeds again only what it does not have."
        )

    def _meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def _write_meta(self, values: dict[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _select(self, ids: Sequence[str]) -> sqlite3.Cursor:
        marks = ",".join("?" * len(ids))
        return self._db.execute(f"SELECT * FROM items WHERE id IN ({marks})", ids)  # noqa: S608  # only marks

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN … COMMIT, or ROLLBACK when the block raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # a full disk has rolled it back already
            self._db.execute("ROLLBACK")


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]


def _row(values: tuple[str, int, int, str, str, str, str, str]) -> Row:
    return Row(*values)


def default_path(source: str, collection: str, server: str) -> Path:
    """Return where the journal of a source, collection and server is kept: below $XDG_STATE_HOME/likewise."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"  # noqa: PTH117  # "" is none
    digest = hashlib.sha256(f"{source}\0{collection}\0{server}".encode(errors="surrogateescape")).hexdigest()
    return home / "likewise" / f"index-{digest[:16]}.sqlite"
