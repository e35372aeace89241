"""Entries in, what to do with each out: skipped, failed, or read and hashed, a bounded number ahead."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

from likewise.errors import InvalidArgument, LikewiseError, NotFound, OutOfRange
from likewise_indexer.journal import DONE, Journal, Row
from likewise_indexer.sources import Entry, Source

BATCH_ENTRIES = 128  # listed, looked up and stat'ed in one hop to a thread
BATCH_BYTES = 8 * 2**20  # of images an archive hands over with the entry
AHEAD = 8  # files being read and hashed at once


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that is as it was; `row` is set where the journal should learn a new mtime."""

    row: Row | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that cannot be read; `row` is None where the journal must keep what it has."""

    entry: Entry
    error: LikewiseError
    row: Row | None


@dataclass(frozen=True, slots=True)
class Ready:
    """An item to upload, and the row to write once it is acknowledged."""

    entry: Entry
    row: Row
    data: bytes


Found = Skipped | Failed | Ready
Listed = Skipped | Failed | tuple[Entry, Row, Row | None]  # the last: to read, what is known of it, what was


async def found(
    source: Source, journal: Journal, max_bytes: int, *, limit: int | None = None, stop: Callable[[], bool]
) -> AsyncIterator[Found]:
    """Yield what to do with each entry, in order, until the end, `limit` entries, or stop().

    Raises what the source raises, after everything listed before that.
    """
    entries = iter(source)
    ahead: deque[asyncio.Future[Found]] = deque()
    left = limit
    broken: LikewiseError | None = None
    try:
        while broken is None and left != 0 and not stop():
            batch, broken = await asyncio.to_thread(_list, entries, journal, left)
            if not batch and broken is None:
                break
            left = None if left is None else left - len(batch)
            for item in batch:
                if stop():
                    return
                if not isinstance(item, tuple):
                    yield item
                    continue
                ahead.append(asyncio.ensure_future(asyncio.to_thread(_read, *item, max_bytes)))
                if len(ahead) >= AHEAD:
                    yield await ahead.popleft()
        while ahead and not stop():
            yield await ahead.popleft()
    finally:
        for reading in ahead:
            reading.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
    if broken is not None:
        raise broken


def _list(entries: Iterator[Entry], journal: Journal, left: int | None) -> tuple[list[Listed], LikewiseError | None]:
    """Take a batch of entries and compare them with the journal; return it, and what ended the source early."""
    most = BATCH_ENTRIES if left is None else min(left, BATCH_ENTRIES)
    batch: list[Entry] = []
    size = 0
    broken: LikewiseError | None = None
    try:
        while len(batch) < most and size < BATCH_BYTES and (entry := next(entries, None)) is not None:
            batch.append(entry)
            size += len(entry.data or b"")
    except LikewiseError as error:
        broken = error
    ids = [entry.id for entry in batch]
    known = journal.look_up(ids)
    firsts = journal.arrive(ids)
    return [_compare(entry, known.get(entry.id), first=f) for entry, f in zip(batch, firsts, strict=True)], broken


def _compare(entry: Entry, was: Row | None, *, first: bool) -> Listed:
    if not first:
        return Failed(entry, InvalidArgument(f"the id {entry.id!r} occurs before in this source"), None)
    described = entry.described()
    row = Row(entry.id, 0, 0, "", described)
    if entry.error:
        return _failed(entry, row, entry.error)
    try:
        size, mtime_ns = entry.stat()
    except FileNotFoundError:
        return _failed(entry, row, NotFound(f"no such file: {entry.uri}"))
    except (OSError, ValueError) as error:
        return _failed(entry, row, InvalidArgument(f"cannot read {entry.uri}: {error}"))
    row = replace(row, size=size, mtime_ns=mtime_ns)
    if was and was.status == DONE and (was.size, was.mtime_ns, was.described) == (size, mtime_ns, described):
        return Skipped()
    return entry, row, was


def _read(entry: Entry, row: Row, was: Row | None, max_bytes: int) -> Found:
    if row.size > max_bytes:
        error = OutOfRange(f"the image has {row.size} bytes, over the server's limit of {max_bytes}: shrink it")
        return _failed(entry, row, error)
    try:
        # One byte more than allowed: a file that grows while it is read must not fill the memory.
        data = entry.data if entry.path is None else _head(entry, max_bytes + 1)
    except OSError as error:
        return _failed(entry, row, InvalidArgument(f"cannot read {entry.uri}: {error.strerror or error}"))
    data = data or b""
    row = replace(row, sha256=hashlib.sha256(data).hexdigest())
    if was and was.status == DONE and (was.sha256, was.described) == (row.sha256, row.described):
        return Skipped(row)
    return Ready(entry, row, data)


def _head(entry: Entry, most: int) -> bytes:
    if entry.path is None or not entry.path.is_file():  # a pipe would wait for ever
        raise OSError("it is not a regular file")
    with entry.path.open("rb") as file:
        return file.read(most)


def _failed(entry: Entry, row: Row, error: LikewiseError) -> Failed:
    return Failed(entry, error, failure(row, error))


def failure(row: Row, error: LikewiseError) -> Row:
    """Return the row of an item that failed."""
    return replace(row, status="failed", code=error.code, message=error.message)
