"""How many vectors a second the store takes: durable, acknowledged, from one thread or several.

    python benchmarks/ingest.py [--items N] [--dim D] [--batch N] [--threads N] [--order random|sorted] [--json OUT]

Every round fills a new store in a temporary folder (`--folder` says on which disk) by `upsert` in batches, each item
with an id, a URI, a content hash, a label and `--attributes` of its own. Ids in random order are the hard case: every
batch touches most pages of the index over them. What is timed ends with the last acknowledgement. `--warm` searches
first, so that an index in memory has to follow every write.

Where the time goes: `checks` are made in the callers' threads, `rows` is the writer's work inside the transaction;
`rest` is what neither covers: commits with their fsync, the index, and waiting for one another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from likewise_server.store import NewItem, embedded, items

POOL = 20_000
"""Different vectors; more would only fill the memory."""


def main() -> None:
    """Measure, print, write JSON."""
    options = _options()
    batches = make_batches(options)
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(options, batches))
        print(f"round {number + 1}: {rounds[-1]['items_per_s']:,.0f} items/s")
    middle = sorted(rounds, key=lambda each: float(each["items_per_s"]))[len(rounds) // 2]
    rate = statistics.median(each["items_per_s"] for each in rounds)
    print(
        f"median {rate:,.0f} items/s: {options.items} of {options.dim} dimensions, {options.batch} at a time,", end=" "
    )
    print(f"{options.threads} threads")
    shares = (f"{part} {middle[f'{part}_s']:.2f} s" for part in ("checks", "rows", "rest"))
    print(f"the middle round took {middle['wall_s']:.2f} s: {', '.join(shares)}")
    if options.json:
        chosen = {key: value for key, value in vars(options).items() if key not in {"json", "folder"}}
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "numpy": np.__version__}
        found = {**machine, **versions, **chosen, "items_per_s": rate, "rounds": rounds}
        options.json.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")


def make_batches(options: argparse.Namespace) -> list[list[NewItem]]:
    """Return the items of one round, as many to a batch as asked for."""
    rows = np.random.default_rng(0).normal(size=(min(options.items, POOL), options.dim)).astype(np.float32)
    order = list(range(options.items))
    if options.order == "random":
        random.Random(0).shuffle(order)
    made = [
        NewItem(
            f"pictures/{n:09d}.jpg",
            rows[at % len(rows)],
            f"class {n % 50}",
            {f"attribute{a}": (n * (a + 3)) % 1000 for a in range(options.attributes)},
            f"file:///pictures/{n:09d}.jpg",
            f"{n * 2654435761 % 2**64:016x}",
        )
        for at, n in enumerate(order)
    ]
    return [made[start : start + options.batch] for start in range(0, len(made), options.batch)]


def one_round(options: argparse.Namespace, batches: Sequence[Sequence[NewItem]]) -> dict[str, float]:
    """Fill a new store; return items a second, and seconds altogether and by part."""
    with tempfile.TemporaryDirectory(prefix="likewise-ingest-", dir=options.folder) as folder:
        store = embedded.EmbeddedStore(folder)
        store.create_collection("c", dim=options.dim, fingerprint="f")
        if options.warm:
            store.search("c", np.ones((1, options.dim), np.float32), 1)

        def put(batch: Sequence[NewItem]) -> None:
            if any(outcome != "created" for outcome in store.upsert("c", batch, fingerprint="f")):
                raise RuntimeError("not every item was stored")

        with (
            timed(embedded, "prepare") as checks,
            timed(items, "upsert") as writes,
            ThreadPoolExecutor(options.threads) as pool,
        ):
            began = time.perf_counter()
            list(pool.map(put, batches))
            wall = time.perf_counter() - began
        if store.count("c") != options.items:
            raise RuntimeError(f"{store.count('c')} items are there")
        kept_s = checks["s"] / options.threads + writes["s"]
        found = {"items_per_s": options.items / wall, "wall_s": wall, "checks_s": checks["s"], "rows_s": writes["s"]}
        # Written here and not in `close`, whose checkpoint is no part of this.
        store.close()
        return {**found, "rest_s": max(0.0, wall - kept_s)}


@contextmanager
def timed(module: ModuleType, name: str) -> Iterator[dict[str, float]]:
    """Add up the seconds spent in a function that is called through its module, over all threads."""
    spent = {"s": 0.0}
    plain: Callable[..., Any] = getattr(module, name)

    def instead(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*arguments)
        finally:
            spent["s"] += time.perf_counter() - began

    setattr(module, name, instead)
    try:
        yield spent
    finally:
        setattr(module, name, plain)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2, help="callers at once; default 2")
    parser.add_argument("--attributes", type=int, default=2, help="of each item; default 2")
    parser.add_argument("--order", choices=["random", "sorted"], default="random", help="of the ids; default random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="search first, so that the index follows the writes")
    parser.add_argument("--folder", type=Path, help="where the temporary folders go")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
