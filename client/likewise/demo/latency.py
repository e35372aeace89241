"""How long one call takes, as a caller on this machine sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from likewise.demo.fewshot import Answers
from likewise.demo.indexing import Indexed
from likewise.demo.pictures import Picture
from likewise.sync import Client

WARM_UP, REPEATS = 5, 60


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, median and 95th percentile, of one call after another."""

    p50: float
    p95: float
    repeats: int


def latencies(client: Client, searched: Indexed, queries: Sequence[Picture], taught: Answers) -> dict[str, Latency]:
    """Measure single calls with pictures: embed, search, classify; and a search that brings its vector."""
    sources = [query.source for query in queries]
    trained_on = client.collection(taught.head.collection)
    calls: dict[str, Callable[[int], object]] = {
        "embed an image": lambda i: client.embed([sources[i % len(sources)]], progress=False),
        "search by image": lambda i: searched.collection.search(sources[i % len(sources)], k=5),
        "search by vector": lambda i: searched.collection.search(
            vector=searched.vectors[i % len(searched.vectors)], k=5
        ),
        "classify an image": lambda i: trained_on.classify(
            [taught.asked[i % len(taught.asked)].source], head=taught.head.name, version=taught.head.version
        ),
    }
    return {name: _measured(call) for name, call in calls.items()}


def _measured(call: Callable[[int], object]) -> Latency:
    for i in range(WARM_UP):
        call(i)
    took = []
    for i in range(REPEATS):
        start = time.perf_counter()
        call(WARM_UP + i)
        took.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(took, (50, 95))
    return Latency(round(float(p50), 2), round(float(p95), 2), REPEATS)
