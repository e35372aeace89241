"""One thread writes: it takes what is queued, commits it together, and only then lets the callers go.

Of several operations each has a savepoint, so that one that fails takes nothing with it. What a caller waits for is the
commit (an fsync) and then `after`, which brings the in-memory index up to date.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from likewise_server.errors import Internal, Unavailable
from likewise_server.store import failpoints
from likewise_server.store.schema import translated

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BATCH = 128
MAX_BATCH_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Operation:
    work: Callable[[sqlite3.Connection], Any]
    after: Callable[[Any], None] | None
    weight: int
    future: Future[Any] = field(default_factory=Future)
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs operations on the one writing connection, in the order they came."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self.doubtful = False  # a write failed, perhaps by the disk's doing, and none has succeeded since
        self._thread = threading.Thread(target=self._main, name="likewise-writer", daemon=True)
        self._thread.start()

    def healthy(self) -> bool:
        """Tell whether operations are still taken."""
        return not self._closed and self._failure is None and self._thread.is_alive()

    def call(
        self,
        work: Callable[[sqlite3.Connection], T],
        after: Callable[[T], None] | None = None,
        *,
        weight: int = 0,
    ) -> T:
        """Run `work` in a transaction; return its result once that is on disk and `after` has run.

        `work` may be run again after a roll-back. `weight`, in bytes, limits how much is committed at once.
        Raises what `work` raised, or ResourceExhausted on a full disk, or Internal if the writer is gone.
        """
        operation = _Operation(work, after, weight)
        with self._lock:
            if self._failure is not None:
                raise _stopped(self._failure)
            if self._closed:
                raise Unavailable("The store is closed. Start the server again.")
            self._queue.put(operation)
        result: T = operation.future.result()
        return result

    def close(self) -> None:
        """Finish what is queued, then stop the thread and close the connection."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _main(self) -> None:
        batch: list[_Operation] = []
        try:
            more = True
            while more:
                more = self._take(batch)
                if batch:
                    self._commit(batch)
                batch = []
        except BaseException as error:  # whatever it was, nobody may wait for a dead thread
            logger.critical("The writer thread stopped; no more writes are taken", exc_info=error)
            with self._lock:
                self._failure = error
            for operation in [*batch, *self._left()]:
                if not operation.future.done():
                    operation.future.set_exception(_stopped(error))
        finally:
            self._connection.close()

    def _take(self, batch: list[_Operation]) -> bool:
        """Fill `batch` with what is queued, waiting for the first; return False at the end of the queue."""
        operation = self._queue.get()
        weight = 0
        while operation is not None:
            batch.append(operation)
            weight += operation.weight
            if len(batch) >= MAX_BATCH or weight >= MAX_BATCH_BYTES:
                return True
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                return True
        return False

    def _left(self) -> list[_Operation]:
        left = []
        while not self._queue.empty():
            operation = self._queue.get_nowait()
            if operation is not None:
                left.append(operation)
        return left

    def _commit(self, batch: list[_Operation]) -> None:
        try:
            self._transaction(batch)
        except (sqlite3.Error, OSError, MemoryError) as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            if len(batch) > 1:  # find out whose fault it was: the others shall not suffer
                for operation in batch:
                    self._commit([operation])
                return
            self.doubtful = True
            batch[0].error = translated(error)
        else:
            self.doubtful &= any(operation.error is not None for operation in batch)
        for operation in batch:
            if operation.error is None and operation.after is not None:
                operation.after(operation.result)
        failpoints.hit("writer.after_apply")
        for operation in batch:
            if operation.error is None:
                operation.future.set_result(operation.result)
            else:
                operation.future.set_exception(operation.error)

    def _transaction(self, batch: list[_Operation]) -> None:
        db = self._connection
        db.execute("BEGIN IMMEDIATE")
        for operation in batch:
            self._run(operation, alone=len(batch) == 1)
        if not db.in_transaction:  # the only operation failed
            return
        failpoints.hit("writer.before_commit")
        db.execute("COMMIT")
        failpoints.hit("writer.after_commit")

    def _run(self, operation: _Operation, *, alone: bool) -> None:
        """Run an operation; one that fails leaves no trace, alone not even of its transaction."""
        db = self._connection
        operation.error = None
        if not alone:  # a savepoint costs a copy of every page that is changed
            db.execute("SAVEPOINT operation")
        try:
            operation.result = operation.work(db)
        except Exception as error:  # it is handed to the one who asked
            if not db.in_transaction:  # a full disk rolls back everything, not only the savepoint
                raise
            db.execute("ROLLBACK" if alone else "ROLLBACK TO operation")
            self.doubtful |= isinstance(error, sqlite3.Error | OSError | MemoryError)
            operation.error = translated(error)
        if not alone:
            db.execute("RELEASE operation")


def _stopped(error: BaseException) -> Internal:
    return Internal(f"The store stopped taking writes ({error!r}). Restart the server; its log has the reason.")
