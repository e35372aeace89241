"""likewise's embedded store in a process, without a server. A worker.

python -m searching.likewise_peer PLAN_JSON DATA_DIR
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.answering import Answers
from common.processes import rss_bytes
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.types import NewItem, Outcome, SearchResult
from searching.data import Dataset, Float32, Int64
from searching.filters import FILTERS, label_of
from searching.plan import Plan
from searching.prepare import truth_path
from searching.turns import Turns

NAME = "bench"
ITEMS = 1000  # of one upsert


def main() -> None:
    """Answer requests about one data directory, which is opened when it is asked for."""
    answers = Answers()
    plan = Plan.parse(sys.argv[1])
    store = Directory(Path(sys.argv[2]), Dataset(plan))
    answers.serve(store.jobs(), {"base_bytes": rss_bytes(os.getpid())})


class Directory:
    """A data directory with one collection that holds a data set."""

    def __init__(self, path: Path, data: Dataset) -> None:
        self.path, self._data = path, data
        self._opened: EmbeddedStore | None = None

    @property
    def store(self) -> EmbeddedStore:
        """The store, once it is open."""
        assert self._opened is not None  # noqa: S101  # whoever asks has opened it
        return self._opened

    def jobs(self) -> dict[str, Any]:
        """Return what the worker can be asked for; the turns once for each form of asking."""
        jobs = {
            "evict": self.evict,
            "open": self.open,
            "ingest": self.ingest,
            "state": self.state,
            "close": self.close,
            **Turns(LikewisePeer(self, bare=True), self._data).jobs("bare_"),
            **Turns(LikewisePeer(self), self._data).jobs("items_"),
        }
        for number, each in enumerate(FILTERS):
            path = truth_path(self._data.plan, each)
            if path.exists():
                peer = LikewisePeer(self, where=each.where, bare=True)
                jobs |= Turns(peer, self._data, np.load(path)).jobs(f"filter{number}_")
        return jobs

    def evict(self) -> dict[str, Any]:
        """Take the directory's files out of the page cache."""
        os.sync()
        for path in self.path.rglob("*"):
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)
        return {}

    def open(self, *, search: bool = True) -> dict[str, Any]:
        """Open the directory and answer one query; return the seconds of both together."""
        started = time.perf_counter()
        self._opened = EmbeddedStore(self.path)
        opened = time.perf_counter() - started
        if search:
            self.store.search(NAME, self._data.queries[:1], self._data.plan.k, bare=True)
        return {"open_s": opened, "answered_s": time.perf_counter() - started}

    def ingest(self, count: int, *, warm: bool) -> dict[str, Any]:
        """Store the first `count` rows. Only the store's part is timed; `warm`: a search came first."""
        fingerprint = f"external:{self._data.dim}"  # as the server calls vectors from elsewhere
        self.store.create_collection(NAME, dim=self._data.dim, fingerprint=fingerprint, indexed=["bucket"])
        if warm:
            self.store.search(NAME, self._data.queries[:1], 1, bare=True)
        took: list[float] = []
        for items in self.items(count):
            started = time.perf_counter()
            outcomes = self.store.upsert(NAME, items, fingerprint=fingerprint)
            took.append(time.perf_counter() - started)
            if any(outcome is not Outcome.CREATED for outcome in outcomes):
                raise RuntimeError(f"an item was not stored: {outcomes}")
        last = took[-max(len(took) // 10, 1) :]
        rates = {"items_per_s": count / sum(took), "last_tenth_items_per_s": count / len(took) * len(last) / sum(last)}
        return {"items": count, "seconds": sum(took), **rates}

    def items(self, count: int) -> Iterator[list[NewItem]]:
        """Yield the items of the first rows, in batches."""
        bucket, label = self._data.bucket, self._data.label
        for first in range(0, count, ITEMS):
            rows = self._data.rows(first, min(first + ITEMS, count))
            yield [
                NewItem(str(n), row, label_of(label[n]), {"bucket": int(bucket[n])})
                for n, row in enumerate(rows, start=first)
            ]

    def state(self) -> dict[str, Any]:
        """Return how the collection is searched now."""
        info = self.store.get_collection(NAME)
        return {**asdict(info.state), "count": info.count, "bytes": info.bytes_by_part}

    def close(self) -> dict[str, Any]:
        """Close the store and return how long that took."""
        started = time.perf_counter()
        self.store.close()
        return {"close_s": time.perf_counter() - started}


class LikewisePeer:
    """One way of asking the store: for ids and scores or for whole items, with a filter or without."""

    def __init__(self, directory: Directory, *, bare: bool = False, where: str = "") -> None:
        self._directory, self._bare, self._where = directory, bare, where

    def settings(self) -> Iterator[list[dict[str, int]]]:
        """Yield nothing to turn: the store finds its operating point itself."""
        yield [{}]

    def use(self, setting: dict[str, int]) -> None:
        """Take the one setting that there is."""

    def search(self, queries: Float32, k: int) -> SearchResult:
        """Return the store's result."""
        return self._directory.store.search(NAME, queries, k, where=self._where, bare=self._bare)

    def numbers(self, answer: SearchResult, k: int) -> Int64:
        """Return the rows' numbers, which are the ids."""
        found = np.full((len(answer.hits), k), -1, np.int64)
        for row, hits in zip(found, answer.hits, strict=True):
            row[: len(hits)] = [int(hit.item.id) for hit in hits]
        return found


if __name__ == "__main__":
    main()
