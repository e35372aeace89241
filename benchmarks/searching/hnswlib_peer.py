"""hnswlib, with the parameters its authors recommend for high recall. A worker, run by the peers' interpreter.

python -m searching.hnswlib_peer PLAN_JSON build|search
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import hnswlib
import numpy as np

from common.answering import Answers
from common.processes import rss_bytes
from searching.data import Dataset, Float32, Int64
from searching.plan import Plan
from searching.turns import Turns

LINKS, EF_CONSTRUCTION = 32, 200
EF = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)


def main() -> None:
    """Build an index and write it, or read one and answer."""
    answers = Answers()
    data = Dataset(Plan.parse(sys.argv[1]))
    path = data.plan.folder / "hnswlib.bin"
    index = hnswlib.Index("ip", data.dim)
    hello: dict[str, Any] = {"version": version("hnswlib"), "base_bytes": rss_bytes(os.getpid())}
    if sys.argv[2] == "build":

        def build() -> dict[str, Any]:
            started = time.perf_counter()
            index.init_index(data.n, ef_construction=EF_CONSTRUCTION, M=LINKS, random_seed=data.plan.seed)
            for first, block in data.blocks():
                index.add_items(block, np.arange(first, first + len(block)), num_threads=data.plan.threads)
                print(f"{first + len(block)} rows", file=sys.stderr)
            seconds = time.perf_counter() - started
            index.save_index(str(path))
            return {"build_s": seconds, "file_bytes": path.stat().st_size}

        answers.serve({"build": build}, hello)
    else:
        index.load_index(str(path))
        index.set_num_threads(data.plan.threads)
        answers.serve(Turns(HnswlibPeer(index), data).jobs(), hello)


class HnswlibPeer:
    """An index of hnswlib."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def settings(self) -> Iterator[list[dict[str, int]]]:
        """Yield rising ef."""
        yield [{"ef": ef} for ef in EF]

    def use(self, setting: dict[str, int]) -> None:
        """Set ef."""
        self._index.set_ef(setting["ef"])

    def search(self, queries: Float32, k: int) -> Any:
        """Return labels and distances."""
        return self._index.knn_query(queries, k)

    def numbers(self, answer: Any, _k: int) -> Int64:
        """Return the labels."""
        return np.asarray(answer[0], np.int64)


if __name__ == "__main__":
    main()
