"""Recall on real queries: now and then an answer is held against an exact look at all rows, behind it.

Where it stays under the target, the collection's segments are tuned anew, to those very queries.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.store import exact, policy
from likewise_server.threads import LastingThread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.store.finding import Nearest
    from likewise_server.store.index import Snapshot
    from likewise_server.store.maintenance import Maintenance
    from likewise_server.store.types import Float32, Metric

EVERY_S = 5.0
SHARE = 0.01  # of the time, at most, goes into looking
NICENESS = 19
KEPT = 64  # queries of each collection
ENOUGH = 24  # of them before a mean says anything
SHORT = 0.02  # by which recall may stay under the target before segments are tuned anew
CLOSE = 1e-6  # relative: rows as near as the last one count as it

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    queries: deque[Float32] = field(default_factory=lambda: deque(maxlen=KEPT))
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


@dataclass(frozen=True, slots=True)
class _Question:
    collection_id: int
    snapshot: Snapshot
    query: Float32
    k: int
    metric: Metric
    scores: NDArray[Any]


class Shadow:
    """Samples at a low rate, in a thread of its own."""

    def __init__(self, maintenance: Maintenance, *, every_s: float = EVERY_S) -> None:
        self._maintenance = maintenance
        self._every_s = every_s
        self._next = 0.0
        self._seen: dict[int, _Seen] = {}
        self._questions: queue.Queue[_Question | None] = queue.Queue(1)
        self._thread = LastingThread("likewise-shadow", self._main)

    def offer(
        self, collection_id: int, snapshot: Snapshot, queries: Float32, k: int, metric: Metric, found: list[Nearest]
    ) -> None:
        """Take one of the queries to look at again, if it is time for that. Never waits."""
        now = time.monotonic()
        if now < self._next or not len(queries):
            return
        self._next = now + self._every_s
        at = int(now * 1e6) % len(queries)
        try:
            self._questions.put_nowait(
                _Question(collection_id, snapshot, queries[at].copy(), k, metric, np.asarray(found[at][1]))
            )
        except queue.Full:
            return

    def recall(self, collection_id: int) -> float | None:
        """Return the mean recall on a collection's latest queries, None before there are enough."""
        seen = self._seen.get(collection_id)
        return float(np.mean(seen.recalls)) if seen and len(seen.recalls) >= ENOUGH else None

    def forget(self, collection_id: int) -> None:
        """Begin anew, as after a build."""
        self._seen.pop(collection_id, None)

    def close(self) -> None:
        """Stop after what is under way."""
        self._questions.put(None)
        self._thread.join()

    def _main(self) -> None:
        if sys.platform == "linux":  # elsewhere this would be the priority of the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (question := self._questions.get()) is not None:
            began = time.monotonic()
            try:
                self._look(question)
            except Exception:
                logger.exception("A sampled query could not be looked at again")
            if self._every_s:
                self._next = time.monotonic() + max(self._every_s, (time.monotonic() - began) / SHARE)

    def _look(self, question: _Question) -> None:
        seen = self._seen.setdefault(question.collection_id, _Seen())
        seen.queries.append(question.query)
        seen.recalls.append(recall_of(question))
        mean = self.recall(question.collection_id)
        if mean is not None and mean < policy.TARGET - SHORT:
            logger.warning("Recall on real queries is %.3f: the index is tuned anew to them", mean)
            self._maintenance.retune(question.collection_id, np.stack(seen.queries))
            self.forget(question.collection_id)


def recall_of(question: _Question) -> float:
    """Return the share of the true nearest rows that the answer had; rows as near as the last count as it."""
    parts = [(part, part.alive) for part in question.snapshot.parts]
    ((_, true),) = exact.nearest(parts, question.query[np.newaxis], question.k, question.metric)
    if not len(true):
        return 1.0
    floor = true[-1] - CLOSE * max(1.0, abs(float(true[-1])))
    return min(1.0, float(np.count_nonzero(question.scores >= floor)) / len(true))
