"""Collections into one file and back, from a data directory whose server may be running and writing.

A backup is a SQLite file with the rows of the collections as they were at one moment, and a manifest with the
SHA-256 of the rows of each table. SQLite's readers and its writer do not wait for one another, so a process of its own
reads while the server writes. Segments are derived and left out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel

from likewise_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from likewise_server.store import attribute_indexes, catalog, failpoints, folders, heads, items, schema, vectors
from likewise_server.store.lock import DirectoryLock
from likewise_server.store.texts import checksum, intact

if TYPE_CHECKING:
    from hashlib import _Hash

APPLICATION_ID = 0x4C494B42  # "LIKB"
DATABASE = "likewise.db"
CHUNK = 4096  # items read and written at a time
_MANIFEST = "CREATE TABLE backup (manifest TEXT NOT NULL, sha256 TEXT NOT NULL)"

Rows: TypeAlias = tuple[str, list[str], list[tuple[Any, ...]]]
"""A table, the names of its columns, and some of its rows."""
Progress: TypeAlias = Callable[[int, int], None]
"""Is called with the items done and the items there are."""


class SavedCollection(BaseModel, frozen=True):
    """A collection in a backup. `sha256` has the checksum of its rows in each table."""

    id: int
    name: str
    items: int
    heads: int
    sha256: dict[str, str]


class Backup(BaseModel, frozen=True):
    """What a backup says of itself. `problems` names what was damaged already where it came from."""

    format: int
    made_at: float
    collections: list[SavedCollection]
    problems: list[str] = []


def backup(data: Path, out: Path, collection: str = "", *, progress: Progress | None = None) -> Backup:
    """Write one collection, or all, to the file `out`; what was acknowledged before is in it.

    Items whose vectors are damaged are kept as they are and named in `problems`. Under its name a backup is complete,
    on disk and read back; until then it is `out` with `.part` at the end, which the next attempt overwrites.
    Raises NotFound, AlreadyExists where `out` exists, FailedPrecondition where `data` is no data directory or another
    backup writes to `out`, ResourceExhausted on a full disk, and Internal where the database itself is damaged.
    """
    if not (data / DATABASE).exists():  # connecting would make one
        raise FailedPrecondition(f"{data} is not the --data directory of a likewise server.")
    with _translating(), _part_of(out) as part:
        with closing(schema.connect(data / DATABASE)) as source:
            source.execute("PRAGMA query_only = ON")
            source.execute("BEGIN")  # the moment: from the first read on, this connection sees one state
            saved = _write(source, part, collection, progress or _quiet)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        failpoints.hit("backup.after_fsync")
        with _opened(part) as again:
            _verify(again, _manifest(again, out), out)
        part.rename(out)
        failpoints.hit("backup.after_rename")
        folders.sync(out.parent)
    return saved


def verify(file: Path) -> Backup:
    """Read all of a backup and return what it says of itself; raises InvalidArgument unless every row is right."""
    with _opened(file) as source:
        said = _manifest(source, file)
        _verify(source, said, file)
        return said


def restore(
    file: Path, data: Path, collection: str = "", *, name: str = "", progress: Progress | None = None
) -> list[SavedCollection]:
    """Put the collections of a backup, or one of them, under another `name` if given, into a data directory.

    The directory is made if there is none, and keeps what it has. Everything is read and checked first; then all of it
    is there, or, after an error or a kill, nothing. Raises InvalidArgument for a file that is no backup or is damaged,
    NotFound, AlreadyExists where a name is taken, FailedPrecondition where a server has the directory or a
    newer release made the backup, and ResourceExhausted on a full disk.
    """
    if name:
        catalog.check_name(name, "collection")
    with _opened(file) as source:
        said = _manifest(source, file)
        chosen = [each for each in said.collections if collection in {"", each.name}]
        if not chosen:
            names = ", ".join(repr(each.name) for each in said.collections)
            raise NotFound(f"{file} has no collection {collection!r}; it has {names or 'none'}.")
        if name and len(chosen) > 1:
            raise InvalidArgument(f"{file} has {len(chosen)} collections: name the one to restore as {name!r}.")
        _verify(source, said, file)
        with _translating(), _at_this_format(source, said) as rows, _taken(data) as db:
            db.execute("BEGIN IMMEDIATE")
            for each in chosen:
                _insert(rows, db, each, name or each.name, progress or _quiet)
            attribute_indexes.bring_up_to_date(db)
            failpoints.hit("restore.before_commit")
            db.execute("COMMIT")
            failpoints.hit("restore.after_commit")
    return chosen


def _write(source: sqlite3.Connection, part: Path, collection: str, progress: Progress) -> Backup:
    chosen = _chosen(source, collection)
    version = _version(source)
    total = sum(count for _, _, count in chosen)
    saved, problems, done = [], [], 0
    with closing(sqlite3.connect(part, isolation_level=None)) as target:
        target.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
        target.execute("PRAGMA journal_mode = OFF")  # until the file has its name, nobody misses it
        target.execute("PRAGMA synchronous = OFF")
        schema.migrate(target, part, version)
        target.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        failpoints.hit("backup.after_create")
        target.execute("BEGIN")
        for collection_id, name, _ in chosen:
            digests: dict[str, _Hash] = {}
            counts = dict.fromkeys(("items", "heads"), 0)
            for table, columns, rows in _read(source, collection_id):
                _digest(digests, table, rows)
                _put(target, table, columns, rows)
                problems += [f"collection {name!r}: {what}" for what in _damaged(source, table, columns, rows)]
                if table in counts:
                    counts[table] += len(rows)
                if table == "items":
                    done += len(rows)
                    progress(done, total)
            saved.append(SavedCollection(id=collection_id, name=name, sha256=_hex(digests), **counts))
        said = Backup(format=version, made_at=time.time(), collections=saved, problems=problems)
        text = said.model_dump_json()
        target.execute(_MANIFEST)
        target.execute("INSERT INTO backup VALUES (?, ?)", (text, hashlib.sha256(text.encode()).hexdigest()))
        target.execute("COMMIT")
    failpoints.hit("backup.after_rows")
    return said


def _chosen(source: sqlite3.Connection, collection: str) -> list[tuple[int, str, int]]:
    """Return the id, name and size of the collections wanted. A database of an older format has these columns too."""
    if _version(source) > len(schema.MIGRATIONS):
        raise FailedPrecondition("A newer release wrote this data directory. Make the backup with that release.")
    found = source.execute("SELECT id, name, item_count FROM collections ORDER BY name").fetchall()
    chosen = [row for row in found if collection in {"", row[1]}]
    if collection and not chosen:
        raise NotFound(f"There is no collection {collection!r}. List the collections there are.")
    return chosen


def _read(db: sqlite3.Connection, collection_id: int) -> Iterator[Rows]:
    """Yield all rows of a collection, those first that others refer to."""

    def select(table: str, condition: str, value: int | str) -> Rows:
        found = db.execute(f"SELECT * FROM {table} WHERE {condition}", (value,))  # noqa: S608  # ours
        return table, [column for column, *_ in found.description], found.fetchall()

    yield select("collections", "id = ?", collection_id)
    vids = vectors.stored_vids(db, collection_id)
    for start in range(0, len(vids), CHUNK):
        wanted = str(vids[start : start + CHUNK])  # is JSON
        for table in ("items", "vectors"):
            yield select(table, "vid IN (SELECT value FROM json_each(?)) ORDER BY vid", wanted)
    yield select("head_names", "collection_id = ? ORDER BY name", collection_id)
    heads = db.execute("SELECT rowid FROM heads WHERE collection_id = ? ORDER BY name, version", (collection_id,))
    for (rowid,) in heads.fetchall():
        yield select("heads", "rowid = ?", rowid)


def _put(target: sqlite3.Connection, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    marks = ", ".join("?" * len(columns))
    target.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608  # the schema's


def _digest(digests: dict[str, _Hash], table: str, rows: list[tuple[Any, ...]]) -> None:
    digest = digests.setdefault(table, hashlib.sha256())
    for row in rows:
        blobs = [value for value in row if isinstance(value, bytes)]
        digest.update(repr([len(value) if isinstance(value, bytes) else value for value in row]).encode())
        for blob in blobs:
            digest.update(blob)


def _hex(digests: dict[str, _Hash]) -> dict[str, str]:
    return {table: digest.hexdigest() for table, digest in digests.items()}


def _damaged(db: sqlite3.Connection, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """Yield what is wrong with rows by the checksums that they have carried since they were written."""
    for row in rows:
        facts = dict(zip(columns, row, strict=True))
        if "data" in facts and not (isinstance(facts["data"], bytes) and zlib.crc32(facts["data"]) == facts["crc"]):
            sound = False
        else:
            words = {"items": items.TEXTS, "heads": heads.TEXTS, "collections": catalog.FIXED}.get(table, ())
            crc = facts.get("text_crc")  # which formats before 3 have not
            sound = crc is None or intact(crc, *(facts[column] for column in words))
        if sound:
            continue
        if table == "collections":
            yield "its own row is damaged: its name, space, metric or storage is not what was written"
        elif table == "items":
            yield f"the texts of item {facts['ext_id']!r} are damaged; add the item again"
        elif table == "heads":
            yield f"version {facts['version']} of head {facts['name']!r} is damaged; train it again"
        else:
            found = db.execute("SELECT ext_id FROM items WHERE vid = ?", (facts["vid"],)).fetchone()
            ext_id = found[0] if found else None
            yield f"the vector of item {ext_id!r} is damaged; add the item again"


def _verify(source: sqlite3.Connection, said: Backup, file: Path) -> None:
    """Raise InvalidArgument unless the rows are those that were written."""
    try:
        for each in said.collections:
            digests: dict[str, _Hash] = {}
            for table, _, rows in _read(source, each.id):
                _digest(digests, table, rows)
            if _hex(digests) != each.sha256:
                wrong = sorted(name for name in each.sha256 if _hex(digests).get(name) != each.sha256[name])
                raise _unusable(file, f"the {' and '.join(wrong)} of collection {each.name!r} are not what was written")
    except sqlite3.Error as error:
        raise _unusable(file, str(error)) from error


def _manifest(source: sqlite3.Connection, file: Path) -> Backup:
    """Return what a backup says of itself; raises InvalidArgument, and FailedPrecondition for one from the future."""
    try:
        if source.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise InvalidArgument(f"{file} is no backup of likewise, or its beginning is damaged.")
        (version,) = source.execute("PRAGMA user_version").fetchone()
        ((text, sha256),) = source.execute("SELECT manifest, sha256 FROM backup").fetchall()
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise _unusable(file, "its manifest is not what was written")
        said = Backup.model_validate_json(text)
    except (sqlite3.Error, ValueError, AttributeError) as error:  # rows that are no text, or none at all
        raise _unusable(file, str(error)) from error
    if said.format != version:
        raise _unusable(file, f"it says format {said.format} and has {version}")
    if said.format > len(schema.MIGRATIONS):
        raise FailedPrecondition(f"A newer release made {file}. Restore it with that release, or a newer one.")
    return said


def _unusable(file: Path, why: str) -> InvalidArgument:
    return InvalidArgument(f"The backup {file} is damaged: {why}. Nothing was restored; use another copy.")


def _insert(
    rows: sqlite3.Connection, db: sqlite3.Connection, saved: SavedCollection, name: str, progress: Progress
) -> None:
    """Write a collection's rows under new ids, in the order in which they were."""
    if db.execute("SELECT 1 FROM collections WHERE name = ?", (name,)).fetchone():
        raise AlreadyExists(f"There is a collection {name!r} already. Restore this one --as another name.")
    ids = {"collections": _last(db, "collections") + 1 - saved.id, "items": _last(db, "items")}
    moved = {"id": ids["collections"], "collection_id": ids["collections"], "vid": ids["items"]}
    done = 0
    for table, columns, found in _read(rows, saved.id):
        by = [moved.get(column, 0) for column in columns]
        fresh = [tuple(value + more if more else value for value, more in zip(row, by, strict=True)) for row in found]
        if table == "collections":
            fresh = [_renamed(dict(zip(columns, row, strict=True)), name) for row in fresh]
        _put(db, table, columns, fresh)
        if table == "items":
            done += len(found)
            progress(done, saved.items)


def _renamed(facts: dict[str, Any], name: str) -> tuple[Any, ...]:
    """Return the values of a collection's row under another name; one that was damaged stays so."""
    sound = intact(facts["text_crc"], *(facts[column] for column in catalog.FIXED))
    facts["name"] = name
    if sound and facts["text_crc"] is not None:
        facts["text_crc"] = checksum(*(facts[column] for column in catalog.FIXED))
    return tuple(facts.values())


def _last(db: sqlite3.Connection, table: str) -> int:
    """Return the last id that a table gave away."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return int(found[0]) if found else 0


@contextmanager
def _part_of(out: Path) -> Iterator[Path]:
    """Give the name of an empty file beside `out` that no other backup writes to; remove it after an error."""
    part = out.with_name(f"{out.name}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.fstat(descriptor).st_ino == part.stat().st_ino  # and not renamed between opening and locking
        except (BlockingIOError, FileNotFoundError):
            alone = False
        if not alone:
            raise FailedPrecondition(f"Another backup to {out} is under way. Wait for it, or choose another name.")
        try:
            _check_free(out)
            os.ftruncate(descriptor, 0)  # of one that was killed
            yield part
        except BaseException:
            with suppress(FileNotFoundError):
                part.unlink()
            raise
    finally:
        os.close(descriptor)


def _check_free(out: Path) -> None:
    if out.exists():
        raise AlreadyExists(f"{out} exists already. Remove it, or choose another name.")


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a backup for reading; it is not touched, and nothing in it is run."""
    if not file.is_file():
        raise InvalidArgument(f"There is no backup {file}.")
    with closing(
        sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    ) as db:
        db.execute("PRAGMA trusted_schema = OFF")
        yield db


@contextmanager
def _at_this_format(source: sqlite3.Connection, said: Backup) -> Iterator[sqlite3.Connection]:
    """Give the backup, or, if an older release made it, a passing copy that is brought up to date."""
    if said.format == len(schema.MIGRATIONS):
        yield source
        return
    with closing(sqlite3.connect("", isolation_level=None)) as copy:  # a file that SQLite removes
        source.backup(copy)
        schema.migrate(copy, Path("the backup"))
        yield copy


@contextmanager
def _taken(data: Path) -> Iterator[sqlite3.Connection]:
    """Lock a data directory, made if there is none, and open its database; what is not committed is undone."""
    folders.make(data)
    lock = DirectoryLock(data / "lock")
    try:
        with closing(schema.connect(data / DATABASE)) as db:
            schema.migrate(db, data / DATABASE)
            yield db
    finally:
        lock.release()


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, MemoryError) as error:
        raise schema.translated(error) from error


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _quiet(_done: int, _total: int) -> None:
    """Tell nobody."""
