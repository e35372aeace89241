"""What every peer is asked alike: to be tuned, and to take its turn with batches, all queries at once, single ones.

Imported by each peer's worker. A peer answers in its own form; that is read after the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from searching.data import Dataset, Float32, Int64, recall

SINGLES = 200  # of the timed half, at most, in one turn of single queries, unless time is left
LEAST_GAIN, PATIENCE = 0.001, 3  # of recall; and settings in a row that may gain less
GLANCES, GLANCE_S = 3, 0.5  # of looking how fast a setting is, while tuning; the best counts


class Peer(Protocol):
    """Something that searches."""

    def settings(self) -> Iterator[list[dict[str, int]]]:
        """Yield runs of settings, each of rising effort."""

    def use(self, setting: dict[str, int]) -> None:
        """Search so from now on."""

    def search(self, queries: Float32, k: int) -> Any:
        """Search, and answer in the peer's own form."""

    def numbers(self, answer: Any, k: int) -> Int64:
        """Return the rows' numbers, `(queries, k)`, out of an answer; -1 for none."""


class Turns:
    """The jobs of a worker around one peer."""

    def __init__(self, peer: Peer, data: Dataset, truth: Int64 | None = None) -> None:
        self._peer, self._data, self._plan = peer, data, data.plan
        self._truth = data.truth if truth is None else truth
        self._timed = np.ascontiguousarray(data.queries[data.half :])

    def jobs(self, prefix: str = "") -> dict[str, Callable[..., dict[str, Any]]]:
        """Return what the worker can be asked for; the prefix tells several of one worker apart."""
        jobs: dict[str, Callable[..., dict[str, Any]]] = {
            "tune": self.tune,
            "first": self.first,
            "use": self.use,
            "recall": self.recall,
            "batch": self.batch,
            "whole": self.whole,
            "single": self.single,
        }
        return {prefix + name: job for name, job in jobs.items()}

    def tune(self) -> dict[str, Any]:
        """Turn up the effort until recall suffices on the tuning half, in each run of settings; keep the fastest."""
        queries, truth = self._data.queries[: self._data.half], self._truth[: self._data.half]
        best: dict[str, Any] = {"setting": None, "recall": 0.0, "queries_per_s": 0.0}
        for run in self._peer.settings():
            reached, idle = 0.0, 0
            for setting in run:
                self._peer.use(setting)
                before, reached = reached, recall(self._found(queries), truth)
                idle = idle + 1 if reached - before < LEAST_GAIN else 0
                if reached >= self._plan.recall:
                    looks = (self._passes(queries, self._plan.batch, GLANCE_S) for _ in range(GLANCES))
                    rate = max(look["queries_per_s"] for look in looks)
                    if rate > best["queries_per_s"]:
                        best = {"setting": setting, "recall": reached, "queries_per_s": rate}
                    break
                if idle == PATIENCE:  # something else than this knob is what limits it
                    break
            if best["setting"] is None:
                best["recall"] = max(best["recall"], reached)  # the most that it reached, for the report
        if best["setting"] is not None:
            self._peer.use(best["setting"])
        return best

    def use(self, setting: dict[str, int]) -> dict[str, Any]:
        """Search with a setting found before."""
        self._peer.use(setting)
        return {}

    def recall(self) -> dict[str, Any]:
        """Return the recall on the timed half, and how many queries got other than as many hits as there are."""
        truth = self._truth[self._data.half :]
        found = self._found(self._timed)
        wrong = int(((found >= 0).sum(axis=1) != (truth >= 0).sum(axis=1)).sum())
        return {"recall": recall(found, truth), "wrong_counts": wrong}

    def first(self) -> dict[str, Any]:
        """Search once, warmed by nothing."""
        started = time.perf_counter()
        self._peer.search(self._timed[:1], self._plan.k)
        return {"ms": (time.perf_counter() - started) * 1e3}

    def batch(self, seconds: float) -> dict[str, Any]:
        """Search in batches for some seconds."""
        return self._passes(self._timed, self._plan.batch, seconds)

    def whole(self, seconds: float) -> dict[str, Any]:
        """Search for all of the timed half at once, as often as the time allows."""
        return self._passes(self._timed, len(self._timed), seconds)

    def single(self, seconds: float) -> dict[str, Any]:
        """Search for one query at a time."""
        return self._passes(self._timed, 1, seconds, least=SINGLES)

    def _passes(self, queries: Float32, size: int, seconds: float, least: int = 0) -> dict[str, Any]:
        """Go round the queries in pieces of one size until the time is over; return the rate and each call's time."""
        starts = range(0, len(queries) - size + 1, size)
        pieces = [queries[first : first + size] for first in starts] or [queries]
        took: list[float] = []
        self._peer.search(pieces[0], self._plan.k)  # what a pause has cooled
        started = time.perf_counter()
        ends = started + seconds
        while len(took) < max(least, 1) or time.perf_counter() < ends:
            before = time.perf_counter()
            self._peer.search(pieces[len(took) % len(pieces)], self._plan.k)
            took.append(time.perf_counter() - before)
        elapsed = time.perf_counter() - started
        rate = len(took) * len(pieces[0]) / elapsed
        p50, p99 = (float(np.percentile(took, percent)) * 1e3 for percent in (50, 99))
        return {"queries_per_s": rate, "calls": len(took), "p50_ms": p50, "p99_ms": p99}

    def _found(self, queries: Float32) -> Int64:
        step = self._plan.batch
        answers = [self._peer.search(queries[at : at + step], self._plan.k) for at in range(0, len(queries), step)]
        return np.concatenate([self._peer.numbers(answer, self._plan.k) for answer in answers])
