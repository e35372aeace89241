"""One run: entries from a source, through the journal, to the server, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likewise import AsyncClient, AsyncCollection
from likewise.aio import DEFAULT_ADDRESS
from likewise.collection import NewItem
from likewise.errors import LikewiseError
from likewise.results import Outcome
from likewise_indexer.failures import Manifest
from likewise_indexer.journal import Journal, Row, default_path
from likewise_indexer.opening import check_server, open_collection
from likewise_indexer.reading import Failed, Ready, Skipped, failure, found
from likewise_indexer.reporting import Report, reporting
from likewise_indexer.sources import Entry, Source, open_source
from likewise_indexer.summary import Summary

FLUSH_ROWS = 64
FLUSH_S = 1.0
PATIENCE_S = 120.0
RETRIES = 10_000  # the timeout decides
INTERRUPTED = "interrupted"


async def run(
    source: Source,
    *,
    collection: str,
    server: str = DEFAULT_ADDRESS,
    backbone: str | None = None,
    metric: str | None = None,
    index: str | None = None,
    indexed: Sequence[str] | None = None,
    journal: Path | None = None,
    failures: Path | None = None,
    limit: int | None = None,
    fresh: bool = False,
    prune: bool = False,
    patience_s: float = PATIENCE_S,
    progress: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Bring a collection up to date with a source, and return what that took.

    `limit`: deal with the first so many entries only. `fresh`: forget the journal and offer everything
    to the server again, which embeds only what it does not have. `prune`: delete what earlier runs
    stored and the source no longer has. `patience_s`: how long one request may take, a server that
    went away included. `stop` is asked often; once true, what is under way is finished and the run ends.

    A server that is lost during the run, or a source that breaks, ends it with `Summary.stopped`; what
    is wrong before that raises LikewiseError. Cancelling leaves a journal that the next run continues.
    """
    await check_server(server)
    journal = journal or default_path(source.name, collection, server)
    failures = failures or journal.with_suffix(".failures.jsonl")
    async with AsyncClient(server, timeout=patience_s, retries=RETRIES) as client:
        target = await open_collection(
            client, collection, backbone=backbone, metric=metric, index=index, indexed=indexed
        )
        max_bytes = (await client.info()).limits.max_image_bytes
        summary = Summary(collection, target.info.backbone, source.labels, journal=str(journal), failures=str(failures))
        with Journal(journal) as book:
            summary.notes = _notes(book.bind(target.info, fresh=fresh), book, target)
            with Manifest(failures) as manifest, _timed(summary):
                async with reporting(source, limit, wanted=progress) as report:
                    work = _Run(target, book, manifest, summary, report)
                    await work.upload(found(source, book, max_bytes, limit=limit, stop=stop))
                if stop() and not summary.stopped:
                    summary.stopped = INTERRUPTED
                if prune and limit is None and not summary.stopped:
                    await work.prune()
    return summary


def index_source(
    path: str | Path | Source, *, collection: str, label_from: str = "auto", pattern: str = "", **options: Any
) -> Summary:
    """Index a folder, pattern, list or archive, and wait for it; `options` are those of `run`.

    Raises LikewiseError for what is wrong before the first item.
    """
    source = open_source(path, label_from=label_from, pattern=pattern) if isinstance(path, (str, Path)) else path
    return asyncio.run(run(source, collection=collection, **options))


def _notes(reset: str, journal: Journal, collection: AsyncCollection) -> tuple[str, ...]:
    if reset:
        return (f"{reset}: starting over",)
    known, stored = journal.count(), collection.info.count
    if known > stored:
        missing = f"the journal knows of {known} items and the collection holds {stored}"
        return (f"{missing}: --fresh puts back what was deleted or lost there",)
    return ()


@contextmanager
def _timed(summary: Summary) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        summary.seconds = time.monotonic() - started


@dataclass(slots=True)
class _Run:
    """The state of a run: what was sent and is not answered, and rows that are not written yet."""

    collection: AsyncCollection
    journal: Journal
    manifest: Manifest
    summary: Summary
    report: Report
    sent: deque[tuple[Entry, Row]] = field(default_factory=deque)
    rows: list[Row] = field(default_factory=list)
    flushed: float = 0.0
    broken: LikewiseError | None = None

    async def upload(self, entries: AsyncIterator[Any]) -> None:
        """Upsert what is ready and write down what is acknowledged, until the entries or the server end."""
        items = self._items(entries)
        try:
            async with aclosing(self.collection.upsert(items, skip_unchanged=True)) as outcomes:  # type: ignore[type-var]
                async for outcome in outcomes:
                    self._acknowledged(outcome)
                    await self._flush()
        except LikewiseError as error:
            self.broken = error
        finally:
            await items.aclose()
            self.journal.record(self.rows)  # also when cancelled: these are acknowledged
            self.rows = []
        if self.broken:
            self.summary.stopped = self.broken.message

    async def prune(self) -> None:
        """Delete from the collection what the journal knows and the source no longer has."""
        if not self.summary.total:
            self.summary.notes += ("nothing was pruned: the source is empty, which may be a mistake",)
            return
        try:
            for ids in self.journal.vanished():
                self.summary.pruned += await self.collection.delete(ids)
                self.journal.forget(ids)
        except LikewiseError as error:
            self.summary.stopped = error.message

    async def _items(self, entries: AsyncIterator[Any]) -> Any:
        try:
            async with aclosing(entries) as each:  # type: ignore[type-var]
                async for item in each:
                    if isinstance(item, Ready):
                        self.sent.append((item.entry, item.row))
                        yield _new_item(item)
                    elif isinstance(item, Skipped):
                        self.summary.skipped += 1
                        self.rows += [item.row] if item.row else []
                        self.report.done()
                    elif isinstance(item, Failed):
                        self._failed(item.entry, item.error, item.row)
                    await self._flush()
        except LikewiseError as error:
            self.broken = error  # of the source: what was sent before shall still be answered

    def _acknowledged(self, outcome: Outcome) -> None:
        entry, row = self.sent.popleft()
        if outcome.error:
            self._failed(entry, outcome.error, failure(row, outcome.error))
            return
        self.rows.append(row)
        match outcome.status:
            case "created":
                self.summary.new += 1
            case "updated":
                self.summary.updated += 1
            case _:
                self.summary.unchanged += 1
        self.report.done()

    def _failed(self, entry: Entry, error: LikewiseError, row: Row | None) -> None:
        self.summary.failed += 1
        self.manifest.add(entry.id, entry.uri, error)
        self.rows += [row] if row else []
        self.report.done()

    async def _flush(self) -> None:
        if len(self.rows) >= FLUSH_ROWS or (self.rows and time.monotonic() - self.flushed > FLUSH_S):
            rows, self.rows = self.rows, []
            await asyncio.to_thread(self.journal.record, rows)
            self.flushed = time.monotonic()


def _new_item(item: Ready) -> NewItem:
    entry = item.entry
    return NewItem(entry.id, item.data, label=entry.label, attributes=entry.attributes, uri=entry.uri)
