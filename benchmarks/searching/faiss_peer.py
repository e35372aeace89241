"""Plain FAISS. A worker: built in one process, whose memory is then its build's, and searched in another.

python -m searching.faiss_peer PLAN_JSON FACTORY build|search
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from common.answering import Answers
from common.processes import rss_bytes
from searching.candidates import Candidate, candidates, lists_for, turn
from searching.data import Dataset, Float32, Int64
from searching.plan import Plan
from searching.turns import Turns

ROWS_PER_LIST = 64  # to train with; FAISS warns below 39
TRAIN_CODES = 65_536  # rows to train codes with, as FAISS itself takes for product quantisers


def main() -> None:
    """Build an index and write it, or read one and answer."""
    answers = Answers()
    plan = Plan.parse(sys.argv[1])
    data = Dataset(plan)
    faiss.omp_set_num_threads(plan.threads)
    candidate = next(each for each in candidates(plan.n, data.dim) if each.factory == sys.argv[2])
    if sys.argv[3] == "build":
        base = rss_bytes(os.getpid())
        answers.serve({"build": lambda: build(data, candidate.factory)}, {"base_bytes": base})
    else:
        started = time.perf_counter()
        peer = FaissPeer(candidate, index_path(plan, candidate.factory))
        answers.serve(Turns(peer, data).jobs(), {"open_s": time.perf_counter() - started})


def index_path(plan: Plan, factory: str) -> Path:
    """Return where the index of a factory string lies."""
    return plan.folder / f"{factory.replace(',', '_')}.faiss"


def build(data: Dataset, factory: str) -> dict[str, Any]:
    """Train, add block by block, and write. The coarse quantiser is trained once for all; its time counts in each."""
    index = faiss.index_factory(data.dim, factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(index)
    shared_s = 0.0
    if lists is not None:
        centroids, shared_s = coarse(data)
        lists.quantizer.add(centroids)
    started = time.perf_counter()
    if not index.is_trained:
        index.train(data.sample(min(data.n, TRAIN_CODES)))
    for _, block in data.blocks():
        index.add(block)
    seconds = shared_s + time.perf_counter() - started
    path = index_path(data.plan, factory)
    faiss.write_index(index, str(path))
    return {"build_s": seconds, "file_bytes": path.stat().st_size}


def coarse(data: Dataset) -> tuple[Float32, float]:
    """Return the centroids of the lists and how long they took, from disk after the first time."""
    path = data.plan.folder / "centroids.npz"
    if not path.exists():
        count = lists_for(data.n)
        started = time.perf_counter()
        rows = data.sample(min(data.n, ROWS_PER_LIST * count))
        # As index_factory sets IVF indexes up for inner products: spherical, 10 iterations.
        means = faiss.Kmeans(data.dim, count, niter=10, spherical=True, max_points_per_centroid=ROWS_PER_LIST)
        means.train(rows)
        np.savez(path, centroids=np.asarray(means.centroids), seconds=time.perf_counter() - started)
    with np.load(path) as kept:
        return kept["centroids"], float(kept["seconds"])


class FaissPeer:
    """An index read from disk."""

    def __init__(self, candidate: Candidate, path: Path) -> None:
        self._candidate = candidate
        self._index = faiss.read_index(str(path))

    def settings(self) -> Iterator[list[dict[str, int]]]:
        """Yield the rising knob beside every setting of the others."""
        for side in self._candidate.sides():
            if self._candidate.rising is None:
                yield [side]
            else:
                name, values = self._candidate.rising
                yield [{**side, name: value} for value in values]

    def use(self, setting: dict[str, int]) -> None:
        """Turn the knobs."""
        for name, value in setting.items():
            turn(self._index, name, value)

    def search(self, queries: Float32, k: int) -> Any:
        """Return scores and numbers."""
        return self._index.search(queries, k)

    def numbers(self, answer: Any, _k: int) -> Int64:
        """Return the numbers."""
        return np.asarray(answer[1], np.int64)


if __name__ == "__main__":
    main()
