"""The embedded store: SQLite keeps everything, FAISS and NumPy answer the searches.

A write: checked here → one transaction on the writer's thread, synced → applied to the index → returned.
A search: one read transaction and the snapshot of the index at the same `seq`, so that the filter, the
nearest rows and their items all are of one moment.
"""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from likewise_server.errors import InvalidArgument, LikewiseError, NotFound, Unavailable
from likewise_server.store import catalog, folders, heads, items, labelling, reporting, schema, segments
from likewise_server.store.builder import Builder
from likewise_server.store.filter_sql import where_clause
from likewise_server.store.filters import parse
from likewise_server.store.fsck import Fsck
from likewise_server.store.index import Indexes
from likewise_server.store.lock import DirectoryLock
from likewise_server.store.maintenance import Maintenance
from likewise_server.store.pages import make_token, page_limit, read_token
from likewise_server.store.prepared import prepare
from likewise_server.store.schema import ReadPool
from likewise_server.store.searching import Searcher, check_fingerprint
from likewise_server.store.segments import SegmentFiles
from likewise_server.store.shadow import Shadow
from likewise_server.store.spaces import Spaces
from likewise_server.store.types import (
    Attributes,
    CollectionInfo,
    CollectionSpace,
    Float32,
    FsckReport,
    HeadRow,
    Item,
    Labelled,
    Metric,
    NewItem,
    NewLabel,
    Outcome,
    SearchResult,
    Storage,
)
from likewise_server.store.writer import Writer

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from likewise_server.store.catalog import Collection
    from likewise_server.store.gpu import Gpu
    from likewise_server.store.items import Change

logger = logging.getLogger(__name__)


class EmbeddedStore:
    """Keeps collections in one data directory, for one process; see `Store` for what the methods promise."""

    def __init__(self, data: str | os.PathLike[str], *, gpu: Gpu | None = None) -> None:
        """Open or make the directory; approximate segments go onto `gpu` as well, while they fit.

        Raises FailedPrecondition if another process has it or a newer release wrote it.
        """
        folder = Path(data)
        folders.make(folder)
        self._folder = folder
        self._lock = DirectoryLock(folder / "lock")
        path = folder / "likewise.db"
        try:
            connection = schema.connect(path)
            try:
                schema.migrate(connection, path)
                self._files = SegmentFiles(folder, gpu)
                for name in self._files.unreferenced(connection):
                    self._files.remove(name)
            except BaseException:
                connection.close()
                raise
        except Exception as error:
            self._lock.release()
            raise schema.translated(error) from error
        self._closed = False
        self._closing = threading.Lock()
        self._indexes = Indexes()
        self._spaces = Spaces()
        self._reads = ReadPool(path)
        self._writer = Writer(connection)
        self._builder = Builder(folder, self._reads)
        self._maintenance = Maintenance(self._reads, self._writer, self._files, self._indexes, self._builder)
        self._shadow = Shadow(self._maintenance)
        self._searcher = Searcher(self._reads, self._maintenance, self._shadow)
        self._fsck = Fsck(self._reads, self._writer, self._files, self._indexes, self._maintenance)
        self._maintenance.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Collections

    def create_collection(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric = "cosine",
        fingerprint: str,
        backbone: str = "",
        request_id: str = "",
        index: str = "auto",
        indexed: Sequence[str] = (),
        storage: Storage = "fp32",
    ) -> CollectionInfo:
        """Make an empty collection, or return the one that this request made before."""
        made = self._writer.call(
            lambda db: catalog.create(
                db,
                name,
                dim=dim,
                metric=metric,
                fingerprint=fingerprint,
                backbone=backbone,
                request_id=request_id,
                index=index,
                indexed=indexed,
                storage=storage,
            )
        )
        self._spaces.forget(name)  # it may be one that is just being deleted
        return self.get_collection(made.name)

    def alter_collection(
        self, name: str, *, index: str | None = None, indexed: Sequence[str] | None = None
    ) -> CollectionInfo:
        """Change how a collection is searched, or which attributes are indexed; None leaves one as it is."""
        before = self._find(name)
        changed = self._writer.call(lambda db: catalog.alter(db, name, index, indexed))
        if changed.index != before.index and changed.item_count:
            self._maintenance.request_anew(changed.id)
        return self.get_collection(changed.name)

    def known_space(self, name: str) -> CollectionSpace | None:
        """Return what never changes of a collection where that takes no waiting, else None."""
        return self._spaces.known(name)

    def space_of(self, name: str) -> CollectionSpace:
        """Return what never changes of a collection."""
        return self._spaces.of(name, lambda: self._find(name).space)

    def get_collection(self, name: str) -> CollectionInfo:
        """Return one collection."""
        with self._reads.transaction() as db:
            collection = catalog.find(db, name)
            return self._info(collection, segments.of_collection(db, collection.id))

    def list_collections(self, page_size: int, page_token: str = "") -> tuple[list[CollectionInfo], str]:
        """Return a page of collections, by name."""
        limit = page_limit(page_size)
        listing = ("collections",)
        (after,) = read_token(page_token, listing, [""])
        with self._reads.transaction() as db:
            found = catalog.page(db, str(after), limit + 1)
            infos = [self._info(each, segments.of_collection(db, each.id)) for each in found[:limit]]
        return infos, make_token(listing, [infos[-1].name]) if len(found) > limit else ""

    def _info(self, collection: Collection, rows: Sequence[segments.SegmentRow]) -> CollectionInfo:
        index = self._indexes.peek(collection.id)
        snapshot = index.snapshot if index is not None else None
        return reporting.described(collection, rows, snapshot, self._builder.progress(collection.id))

    def delete_collection(self, name: str) -> None:
        """Delete a collection with all that belongs to it."""
        collection_id, files = self._writer.call(lambda db: catalog.delete(db, name))
        self._spaces.forget(name)
        self._indexes.drop(collection_id)
        self._shadow.forget(collection_id)
        for file in files:
            self._files.remove(file)

    def _find(self, name: str) -> Collection:
        with self._reads.transaction() as db:
            return catalog.find(db, name)

    # Items

    def upsert(
        self, collection: str, new_items: Sequence[NewItem], *, fingerprint: str
    ) -> list[Outcome | LikewiseError]:
        """Store items; one entry per item, in order."""
        target = self._find(collection)
        check_fingerprint(target, fingerprint, "vectors")
        good, errors = prepare(new_items, target)
        outcomes: Iterator[Outcome] = iter(())
        if good.texts:
            done, _ = self._writer.call(
                lambda db: items.upsert(db, target.id, good),
                lambda result: self._apply(result[1]),
                weight=good.bytes,
            )
            outcomes = iter(done)
        return [next(outcomes) if error is None else error for error in errors]

    def relabel(self, collection: str, labels: Sequence[NewLabel]) -> list[Outcome | LikewiseError]:
        """Label stored items anew; one entry per label, in order."""
        target = self._find(collection)
        labelling.check(labels)
        done, _ = self._writer.call(
            lambda db: labelling.relabel(db, target.id, labels), lambda result: self._apply(result[1])
        )
        return done

    def _apply(self, change: Change | None) -> None:
        """Bring the index up to date; on the writer's thread, after the commit."""
        if change is not None:
            self._maintenance.follow(change)

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Item | None]:
        """Return one entry per id, in order, None where there is no such item."""
        with self._reads.transaction() as db:
            found = items.by_id(db, catalog.find(db, collection), ids, with_vectors=vectors)
        return [found.get(each) for each in ids]

    def list_items(
        self,
        collection: str,
        *,
        where: str = "",
        page_size: int = 100,
        page_token: str = "",
        vectors: bool = False,
    ) -> tuple[list[Item], str]:
        """Return a page of items, by id."""
        limit = page_limit(page_size)
        tree = parse(where)
        with self._reads.transaction() as db:
            target = catalog.find(db, collection)
            condition = where_clause(tree, target.indexed)
            listing = ("items", str(target.id), where)
            (after,) = read_token(page_token, listing, [""])
            found = items.page(db, target, condition, str(after), limit + 1, with_vectors=vectors)
        return found[:limit], make_token(listing, [found[limit - 1].id]) if len(found) > limit else ""

    def count(self, collection: str, where: str = "") -> int:
        """Return the number of items, or of those that match."""
        tree = parse(where)
        with self._reads.transaction() as db:
            target = catalog.find(db, collection)
            return items.count(db, target, where_clause(tree, target.indexed))

    def delete(self, collection: str, ids: Sequence[str] | None = None, *, where: str = "") -> int:
        """Delete the items named, or those that match, or with both those named that match."""
        tree = parse(where)
        if ids is None and tree is None:
            raise InvalidArgument("Nothing says what to delete: give ids or a filter, or delete the collection.")
        target = self._find(collection)
        condition = where_clause(tree, target.indexed)
        deleted, _ = self._writer.call(
            lambda db: items.delete(db, target.id, ids, condition), lambda result: self._apply(result[1])
        )
        return deleted

    def search(
        self,
        collection: str,
        queries: Float32,
        k: int,
        *,
        where: str = "",
        exclude_ids: Sequence[str] = (),
        fingerprint: str = "",
        min_score: float | None = None,
        bare: bool = False,
    ) -> SearchResult:
        """Find the `k` nearest items of each query."""
        return self._searcher.search(
            collection,
            queries,
            k,
            where=where,
            exclude_ids=exclude_ids,
            fingerprint=fingerprint,
            min_score=min_score,
            bare=bare,
        )

    def labelled(self, collection: str, *, where: str = "") -> Labelled:
        """Return every item that has a label, in order of insertion."""
        tree = parse(where)
        with self._reads.transaction() as db:
            target = catalog.find(db, collection)
            return items.labelled(db, target, where_clause(tree, target.indexed))

    def mean_vector(self, collection: str, limit: int = 20_000) -> Float32:
        """Return the mean of the first `limit` L2-normalised vectors, `(dim,)`; zeros if there are none."""
        with self._reads.transaction() as db:
            return items.mean_vector(db, catalog.find(db, collection), limit)

    # Heads

    def save_head(
        self, collection: str, name: str, kind: str, meta: Attributes, blob: bytes, request_id: str = ""
    ) -> HeadRow:
        """Store the next version of a head, or return the one that this request stored before."""
        target = self._find(collection)
        return self._writer.call(
            lambda db: heads.save(db, target.id, name, kind, meta, blob, request_id), weight=len(blob)
        )

    def get_head(self, collection: str, name: str, version: int = 0) -> HeadRow:
        """Return a version of a head, 0 for the latest."""
        with self._reads.transaction() as db:
            return heads.get(db, catalog.find(db, collection), name, version)

    def head_of_request(self, collection: str, name: str, request_id: str) -> HeadRow | None:
        """Return the version of a head that this request stored, if it did."""
        with self._reads.transaction() as db:
            return heads.of_request(db, catalog.find(db, collection), name, request_id)

    def list_heads(
        self,
        collection: str,
        *,
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
        blobs: bool = False,
    ) -> tuple[list[HeadRow], str]:
        """Return a page of head versions, by name and version; without blobs unless asked."""
        limit = page_limit(page_size)
        with self._reads.transaction() as db:
            target = catalog.find(db, collection)
            listing = ("heads", str(target.id), name)
            after_name, after_version = read_token(page_token, listing, ["", 0])
            after = (str(after_name), int(after_version))
            found = heads.page(db, target, name, after, limit + 1, blobs=blobs)
        token = make_token(listing, [found[limit - 1].name, found[limit - 1].version]) if len(found) > limit else ""
        return found[:limit], token

    def delete_head(self, collection: str, name: str, version: int = 0) -> int:
        """Delete a version of a head, 0 for all of them; return how many."""
        target = self._find(collection)
        return self._writer.call(lambda db: heads.delete(db, target.id, name, version))

    # Care

    def fsck(self, collection: str = "", *, repair: bool = False) -> FsckReport:
        """Check one collection or everything; with `repair`, rebuild what is derived."""
        return self._fsck.run(collection, repair=repair)

    def checkpoint(self, collection: str = "") -> None:
        """Write segments of what is in none yet."""
        for collection_id in [self._find(collection).id] if collection else self._maintenance.dirty():
            with suppress(NotFound) if not collection else nullcontext():
                self._maintenance.checkpoint(collection_id)

    def healthy(self) -> bool:
        """Tell whether writes can still be taken."""
        return self._writer.healthy()

    def doubtful(self) -> bool:
        """Tell whether a write has failed by the disk's doing, as it seems, and none has succeeded since."""
        return self._writer.doubtful

    def probe(self) -> None:
        """Write one page of the database and have it on disk. Raises ResourceExhausted also for a nearly full disk."""
        self._writer.call(schema.touch)
        schema.check_space(self._folder)

    def close(self) -> None:
        """Checkpoint what is dirty, finish the writes and let go of the directory. Closing twice is fine."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._shadow.close()
            self._maintenance.close()
            try:
                if self._writer.healthy():
                    self.checkpoint()
            except Unavailable as error:
                logger.info("What is in no segment yet is left to the next start: %s", error)
            except LikewiseError:
                # The rows are in the database; the next start takes a little longer.
                logger.exception("The last checkpoint failed")
            finally:
                self._writer.close()
                self._reads.close()
                self._lock.release()
