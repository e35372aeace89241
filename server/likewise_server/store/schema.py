"""The database: its tables, how a connection is set up, and how its errors become ours."""

from __future__ import annotations

import errno
import json
import queue
import shutil
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from likewise_server.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    LikewiseError,
    ResourceExhausted,
    Unavailable,
)
from likewise_server.store import failpoints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TRANSLATED = (sqlite3.Error, OSError, MemoryError, UnicodeError, OverflowError)
APPLICATION_ID = 0x4C494B45  # "LIKE"
PAGE_BYTES = 16_384
"""Of a new database. Into 4096, the default, goes one vector of 512 dimensions, and half the page is lost."""
WAL_BYTES = 64 * 2**20
"""The log is copied into the database when it is this long; each copying costs two fsyncs."""

# One script per version of the format, applied in order; never edit one that was released.
MIGRATIONS = (
    """
    CREATE TABLE collections (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        dim INTEGER NOT NULL,
        metric TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        backbone TEXT NOT NULL,
        request_id TEXT NOT NULL,
        created_at REAL NOT NULL,
        seq INTEGER NOT NULL DEFAULT 0,         -- goes up by one with each write to the items
        item_count INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE items (
        vid INTEGER PRIMARY KEY AUTOINCREMENT,  -- a new one per version of an item, never reused
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        ext_id TEXT NOT NULL,
        label TEXT,
        attributes TEXT NOT NULL,
        uri TEXT NOT NULL,
        content_hash TEXT NOT NULL,
        updated_at REAL NOT NULL,
        UNIQUE (collection_id, ext_id)
    );
    CREATE INDEX items_by_label ON items (collection_id, label);
    CREATE TABLE vectors (                      -- apart, so that a scan of the items skips them
        vid INTEGER PRIMARY KEY REFERENCES items (vid) ON DELETE CASCADE,
        data BLOB NOT NULL,                     -- float32, little-endian, as given
        crc INTEGER NOT NULL
    );
    CREATE TABLE segments (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        file TEXT NOT NULL UNIQUE,
        factory TEXT NOT NULL,
        row_count INTEGER NOT NULL,
        up_to_seq INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        faiss_version TEXT NOT NULL,
        measured_recall REAL,
        created_at REAL NOT NULL
    );
    CREATE INDEX segments_by_collection ON segments (collection_id);
    CREATE TABLE head_names (                   -- outlives the versions, so that none is numbered twice
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        last_version INTEGER NOT NULL,
        PRIMARY KEY (collection_id, name)
    );
    CREATE TABLE heads (
        collection_id INTEGER NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        kind TEXT NOT NULL,
        meta TEXT NOT NULL,
        data BLOB NOT NULL,
        crc INTEGER NOT NULL,
        created_at REAL NOT NULL,
        request_id TEXT NOT NULL,
        PRIMARY KEY (collection_id, name, version),
        FOREIGN KEY (collection_id, name) REFERENCES head_names (collection_id, name) ON DELETE CASCADE
    );
    CREATE UNIQUE INDEX heads_by_request ON heads (collection_id, name, request_id) WHERE request_id <> '';
    """,
    """
    ALTER TABLE collections ADD COLUMN index_spec TEXT NOT NULL DEFAULT 'auto';
    ALTER TABLE collections ADD COLUMN indexed TEXT NOT NULL DEFAULT '[]';  -- JSON list of attributes
    ALTER TABLE collections ADD COLUMN storage TEXT NOT NULL DEFAULT 'fp32';
    ALTER TABLE segments ADD COLUMN meta TEXT NOT NULL DEFAULT '{}';        -- JSON
    DELETE FROM segments;                       -- their files had another form; they are built anew
    -- What the planner is to think: without this, that a collection has ten items, and that no index is worth much.
    ANALYZE segments;
    DELETE FROM sqlite_stat1;
    INSERT INTO sqlite_stat1 VALUES
        ('items', 'sqlite_autoindex_items_1', '1000000 100000 1'),
        ('items', 'items_by_label', '1000000 100000 1000');
    ANALYZE sqlite_schema;                                                  -- reads that anew
    """,
    """
    -- Of what a row says in words, see texts.py; NULL in rows that earlier releases wrote.
    ALTER TABLE items ADD COLUMN text_crc INTEGER;
    ALTER TABLE heads ADD COLUMN text_crc INTEGER;
    ALTER TABLE collections ADD COLUMN text_crc INTEGER;
    """,
)


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection in autocommit, usable from one thread at a time; a commit on it is an fsync."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // page_bytes}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("PRAGMA temp_store = MEMORY")  # what a savepoint keeps would go to a file otherwise
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: Path, to: int = len(MIGRATIONS)) -> None:
    """Bring the database to format `to`, the newest by default; raises FailedPrecondition for one from the future."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise FailedPrecondition(
            f"{path} has format {version}; this release reads up to {len(MIGRATIONS)}. "
            "Start the newer release that wrote it."
        )
    for number, script in enumerate(MIGRATIONS[version:to], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number};")
        failpoints.hit("schema.before_commit")
        connection.execute("COMMIT")
        failpoints.hit("schema.after_commit")
    touch(connection)


def touch(db: sqlite3.Connection) -> None:
    """Write a page that changes nothing."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def check_space(folder: Path) -> None:
    """Raise ResourceExhausted where so little room is left on the disk that the log may not get its full length."""
    free = shutil.disk_usage(folder).free
    if free < WAL_BYTES:
        raise ResourceExhausted(
            f"Only {free // 2**20} MiB are free on the disk of {folder}: {WAL_BYTES // 2**20} MiB are needed at least. "
            "Free some space."
        )


def translated(error: Exception) -> Exception:
    """Return the error that a caller should see for one that SQLite raised; others come back as they are."""
    if isinstance(error, LikewiseError) or not isinstance(error, _TRANSLATED):
        return error
    text = str(error)
    name = getattr(error, "sqlite_errorname", None) or ""
    number = getattr(error, "errno", None)
    ours: LikewiseError
    if isinstance(error, UnicodeEncodeError):
        ours = InvalidArgument("A text holds half a surrogate pair, which is not a character.")
    elif isinstance(error, OverflowError):
        ours = InvalidArgument("A number does not fit into 64 bits.")
    elif "parser stack overflow" in text or "Expression tree is too large" in text:
        ours = InvalidArgument("The filter nests `and` and `or` too deep. Write it with fewer parentheses.")
    elif isinstance(error, MemoryError):
        ours = ResourceExhausted("There is not enough memory for this. Send less at once.")
    elif "disk is full" in text or name == "SQLITE_FULL" or number in {errno.ENOSPC, errno.EDQUOT}:
        ours = ResourceExhausted("The disk is full: nothing was written. Free some space and try again.")
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        ours = Unavailable("The database is locked by another program. Try again.", retry_after_s=1.0)
    elif name.startswith("SQLITE_IOERR") or number == errno.EIO:
        ours = Unavailable(
            f"The disk failed: {error}. A write that ends so may be there after the next start, or not: send it again."
            " Look for room on the disk, and for errors of it in the machine's log."
        )
    else:
        ours = Internal(f"The database failed: {error}. Run `likewise collections fsck`, or restore a backup.")
    ours.__cause__ = error
    return ours


def parsed(text: str, what: str) -> Any:
    """Return stored JSON as values; raises Internal, which names `what`, where it is damaged."""
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:  # TypeError: it is no text any more
        raise Internal(f"{what} is damaged. Run fsck, and restore it from a backup or write it again.") from error


class ReadPool:
    """Read-only connections, lent to one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that sees one state of the database throughout."""
        if self._closed:
            raise Unavailable("The store is closed. Start the server again.")
        connection = None
        try:
            connection = self._borrow()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()
        except _TRANSLATED as error:
            raise translated(error) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _borrow(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.put(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the idle connections now and the lent ones when they come back."""
        with self._lock:
            self._closed = True
        while not self._idle.empty():
            self._idle.get_nowait().close()
