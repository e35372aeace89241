"""How hard a data set is to search, so that made vectors can be held beside real ones.

    python -m searching.hardness PLAN_JSON

Says of the queries: the cosine to their 1st and 10th neighbour and to any row, the local intrinsic dimension (the
maximum-likelihood estimate over 100 neighbours, Levina and Bickel 2004), and the part of an IVF index's lists that
must be read until recall at 10 is 0.9 and 0.99.
"""

from __future__ import annotations

import sys
from typing import Any

import faiss
import numpy as np

from searching import truth
from searching.candidates import lists_for
from searching.data import Dataset, recall
from searching.plan import Plan

NEIGHBOURS = 100
SAMPLE = 50_000
GOALS = (0.9, 0.99)


def main() -> None:
    """Print the figures."""
    data = Dataset(Plan.parse(sys.argv[1]))
    queries = data.queries
    numbers = truth.nearest(data, queries, NEIGHBOURS)
    rows = data.sample(min(data.n, SAMPLE))
    mapped = np.load(data.path, mmap_mode="r")
    cosines = np.stack([mapped[found] @ query for found, query in zip(numbers, queries, strict=True)])
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 1e-9))
    dimension = 1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1]), axis=1)
    any_row = np.einsum("ij,ij->i", rows[: len(queries)], queries[: len(rows)])
    print(f"{data.n} x {data.dim}: cosine to the 1st neighbour {np.median(cosines[:, 0]):.3f},", end=" ")
    print(f"the 10th {np.median(cosines[:, 9]):.3f}, any row {np.median(any_row):.3f};", end=" ")
    print(f"local intrinsic dimension {np.median(dimension):.1f}")
    lists = lists_for(data.n)
    index: Any = faiss.index_factory(data.dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    for _, block in data.blocks():
        index.add(block)
    needed = dict.fromkeys(GOALS, 1.0)
    probes = 1
    while probes <= lists:
        index.nprobe = probes
        reached = recall(index.search(queries, 10)[1], numbers[:, :10])
        for goal in GOALS:
            if reached >= goal:
                needed[goal] = min(needed[goal], probes / lists)
        probes = max(probes + 1, round(probes * 1.2))
    print(", ".join(f"recall {goal}: {part:.1%} of {lists} lists" for goal, part in needed.items()))


if __name__ == "__main__":
    main()
