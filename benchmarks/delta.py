"""What bytes save in searches of rows that are in no segment yet: store/codes.py beside comparing all rows in full.

    python benchmarks/delta.py [--rows N ...] [--dim D] [--threads T]

Made vectors, cosine, ten neighbours, in one process; milliseconds of a search by one query, by 8 and by 64, medians of
turns that alternate. Both give the same answers, which is checked. The first search of new rows rounds them too.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from likewise_server.store import codes, exact
from likewise_server.store.codes import Codes
from likewise_server.store.parts import Part, squares_of
from likewise_server.store.vectors import searchable
from searching.synthetic import world

if TYPE_CHECKING:
    from numpy.typing import NDArray

K, SIZES, TURNS, SEED = 10, (1, 8, 64), 15, 3


def main() -> None:
    """Print one line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8_192, 30_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print("bytes are faster here" if codes.fast() else "bytes are slower here, and not used")
    print(f"{'rows':>8} {'queries':>8} {'in full':>9} {'with bytes':>11} {'ratio':>6} {'rounding':>9}")
    with threadpool_limits(chosen.threads):
        for rows in chosen.rows:
            _compare(rows, chosen.dim)


def _compare(count: int, dim: int) -> None:
    source, rng = world(count, dim, SEED), np.random.default_rng(SEED)
    rows, queries = (searchable(source.draw(n, rng)[0], "cosine") for n in (count, max(SIZES)))
    plain = Part.of(np.arange(count), rows, squares_of(rows))
    known = Codes(dim)
    began = time.perf_counter()
    known.of(rows)
    rounding = 1e3 * (time.perf_counter() - began)
    coded = Part(plain.vids, rows, plain.alive, plain.squares, codes=known)
    for size in SIZES:
        times: dict[str, list[float]] = {"full": [], "bytes": []}
        for turn in range(TURNS):
            asked = queries[:size] if size > 1 else queries[turn : turn + 1]
            full, quick = (_timed(part, asked, times[name]) for part, name in ((plain, "full"), (coded, "bytes")))
            if any(list(a) != list(b) for a, b in zip(full, quick, strict=True)):
                raise RuntimeError("the answers differ")
        a, b = (float(np.median(times[name])) for name in ("full", "bytes"))
        print(f"{count:8} {size:8} {a:9.2f} {b:11.2f} {a / b:6.2f} {rounding:9.1f}")


def _timed(part: Part, queries: NDArray[np.float32], times: list[float]) -> list[NDArray[np.int64]]:
    began = time.perf_counter()
    found = exact.nearest([(part, part.alive)], queries, K, "cosine")
    times.append(1e3 * (time.perf_counter() - began))
    return [vids for vids, _ in found]


if __name__ == "__main__":
    main()
