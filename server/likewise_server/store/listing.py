"""Rows that are in no segment yet, put into the lists of a segment that is trained already.

A segment takes seconds to build, that of a large collection a minute, and what is written meanwhile would be compared
row by row in every search. Lists that exist fit new rows nearly as well as their own would; how well is measured before
they are used, as for every index. Nothing of this is on disk: it can be made again.
"""

from __future__ import annotations

import logging
import queue
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import faiss as untyped
import numpy as np

from likewise_server.store import policy, recall
from likewise_server.store.approximate import Approximation
from likewise_server.store.parts import BLOCK
from likewise_server.threads import LastingThread

if TYPE_CHECKING:
    from likewise_server.store.index import CollectionIndex, Snapshot
    from likewise_server.store.parts import Part
    from likewise_server.store.types import Metric

faiss: Any = untyped  # its stubs know half of it
QUESTIONS = 64  # rows asked with, to measure the recall
MOST_K = 300  # what is asked for more is compared one by one: to measure that as well would take too long
SEED = 11

logger = logging.getLogger(__name__)


def listed(snapshot: Snapshot, outside: Part, metric: Metric) -> Approximation | None:
    """Return an index over `outside`, the rows of a snapshot that are in no segment, listed already or not.

    None where no segment has lists to lend, or they do not reach the target on these rows.
    """
    faiss.omp_set_num_threads(1)  # of this thread; the others are for those who wait
    known = 0 if snapshot.listed is None else len(snapshot.listed)
    if snapshot.listed is not None and snapshot.listed.lists is not None:
        points = snapshot.listed.lists.points
        index = faiss.clone_index(snapshot.listed.lists.index)
    else:
        lending = [part for part in snapshot.segments if part.approximation and part.approximation.lends]
        largest = max(lending, key=len, default=None)
        if largest is None or largest.approximation is None:
            return None
        points = [point for point in largest.approximation.points if point.k <= MOST_K]
        index = _empty(largest.approximation.index)
    for start in range(known, len(outside), BLOCK):
        index.add(outside.block(start, start + BLOCK))
    own = np.sort(np.random.default_rng(SEED).choice(len(outside), min(QUESTIONS, len(outside)), replace=False))
    questions = recall.Questions(outside.taken(own), own)
    reached = recall.confirmed(Approximation(index, points), outside, questions, metric, policy.TARGET)
    return Approximation(index, reached) if reached else None


def _empty(index: Any) -> Any:
    """Return an index with the same lists, and nothing in them."""
    index = faiss.downcast_index(index)
    quantizer = faiss.clone_index(index.quantizer)
    made = faiss.IndexIVFRaBitQ(quantizer, index.d, index.nlist, index.metric_type)
    quantizer.this.disown()
    made.own_fields, made.qb, made.is_trained = True, index.qb, True
    return made


class Lister:
    """Puts rows into lists in a thread of its own."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[CollectionIndex | None] = queue.SimpleQueue()
        self._waiting: set[CollectionIndex] = set()
        self._refused: WeakKeyDictionary[CollectionIndex, int] = WeakKeyDictionary()  # and of how many rows
        self._thread = LastingThread("likewise-lists", self._main)

    def look(self, index: CollectionIndex) -> None:
        """Have a collection's rows put into lists if there are enough of them. Never waits."""
        snapshot = index.snapshot
        if snapshot is None or index in self._waiting or not policy.listable(snapshot):
            return
        if snapshot.outside >= 2 * self._refused.get(index, 0):
            self._waiting.add(index)
            self._asked.put(index)

    def close(self) -> None:
        """Stop after what is under way."""
        self._asked.put(None)
        self._thread.join()

    def _main(self) -> None:
        while (index := self._asked.get()) is not None:
            if self._list(index):
                self._refused.pop(index, None)
            elif (snapshot := index.snapshot) is not None:
                self._refused[index] = snapshot.outside
            self._waiting.discard(index)
            self.look(index)

    def _list(self, index: CollectionIndex) -> bool:
        try:
            return index.list()
        except Exception:
            # The rows go on being compared one by one.
            logger.exception("Rows that are in no segment yet could not be put into lists")
            return False
