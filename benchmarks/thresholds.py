"""From how many rows on an approximate segment is worth while: the figures behind store/policy.py.

    python benchmarks/thresholds.py [--rows N ...] [--dim D]

The same made vectors in two collections, one searched exactly and one by the automatic index whatever its size:
milliseconds of a single query and of each of 64 asked together, and the seconds that the build takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import NewItem, finding, policy
from likewise_server.store.embedded import EmbeddedStore
from searching.synthetic import world

if TYPE_CHECKING:
    from numpy.typing import NDArray

K, BATCH, SINGLES, BATCHES, INGESTED = 10, 64, 200, 10, 1000
PATIENCE_S, SEED = 600.0, 3


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    chosen = parser.parse_args()
    policy.SHOWN_TO_ALL = finding.FEW = 0
    print(f"{'rows':>8} {'exact ms':>9} {'of 64':>7} {'approx. ms':>11} {'of 64':>7} {'build s':>8} {'recall':>7}")
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            exact = _measured(Path(folder) / "exact", "exact", rows, chosen.dim)
            quick = _measured(Path(folder) / "auto", "auto", rows, chosen.dim)
        print(
            f"{rows:8} {exact[0]:9.2f} {exact[1]:7.3f} {quick[0]:11.2f} {quick[1]:7.3f} {quick[2]:8.1f} {quick[3]:7.4f}"
        )


def _measured(folder: Path, index: str, rows: int, dim: int) -> tuple[float, float, float, float]:
    """Return ms of one query, ms of each of a batch, seconds of the build, and the recall."""
    source, rng = world(rows, dim, SEED), np.random.default_rng(SEED)
    queries, _ = source.draw(BATCH * BATCHES, rng)
    with EmbeddedStore(folder) as store:
        store.create_collection("c", dim=dim, fingerprint="f", index=index)
        for start in range(0, rows, INGESTED):
            block, _ = source.draw(min(INGESTED, rows - start), rng)
            store.upsert("c", [NewItem(str(start + n), row) for n, row in enumerate(block)], fingerprint="f")
        began = time.monotonic()
        store.checkpoint("c")
        _settle(store)
        built = time.monotonic() - began
        result = store.search("c", queries[:1], K)
        if result.exact != (index == "exact"):
            sys.exit(f"{rows} rows with index {index} are searched with {store.get_collection('c').state}")
        single = _median([_ms(store, queries[n : n + 1]) for n in range(SINGLES)])
        batch = _median([_ms(store, queries[n : n + BATCH]) for n in range(0, len(queries), BATCH)]) / BATCH
        return single, batch, built, result.measured_recall or 1.0


def _settle(store: EmbeddedStore) -> None:
    ends = time.monotonic() + PATIENCE_S
    while store.get_collection("c").state.building and time.monotonic() < ends:
        time.sleep(0.1)


def _ms(store: EmbeddedStore, queries: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    store.search("c", queries, K, bare=True)
    return 1e3 * (time.perf_counter() - began)


def _median(values: list[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    main()
