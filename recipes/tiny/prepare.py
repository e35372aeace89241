"""Make the training views and the teachers' features of them once, in chunks that survive a kill.

python -m recipes.tiny.prepare --cache build/tiny
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from recipes.tiny.teachers import Teachers
from recipes.tiny.views import Corpus, make_views

from likewise_training.checkpoints import write_whole

_TEACHERS: dict[Path, Teachers] = {}


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an .npy file that is either whole or absent, whenever the process dies."""
    write_whole(path, lambda stream: np.save(stream, array))


def _chunk(shared: Path, cache: Path, number: int, indexes: list[int], seed: int, *, compiled: bool) -> int:
    torch.set_num_threads(1)
    if shared not in _TEACHERS:
        _TEACHERS[shared] = Teachers(shared / "weights", compiled=compiled)
    views = make_views(Corpus(shared / "data/corpus/corpus.zip"), indexes, seed)
    write_array(cache / f"views-{number:05d}.npy", views)
    write_array(cache / f"features-{number:05d}.npy", _TEACHERS[shared](views))  # last: it marks the chunk done
    return len(views)


def main(argv: list[str] | None = None) -> None:
    """Fill the cache folder with what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("LIKEWISE_SHARED", "../shared")))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--chunk", type=int, default=512, help="pictures a chunk")
    parser.add_argument("--pictures", type=int, help="only so many of the corpus")
    parser.add_argument("--eager", action="store_true", help="do not compile the teachers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.cache.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(args.seed).permutation(len(Corpus(args.shared / "data/corpus/corpus.zip")))
    order = order[: args.pictures]
    chunks = np.split(order, range(args.chunk, len(order), args.chunk))
    left = [n for n in range(len(chunks)) if not (args.cache / f"features-{n:05d}.npy").exists()]
    started, views = time.monotonic(), 0
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                _chunk,
                args.shared,
                args.cache,
                n,
                chunks[n].tolist(),
                args.seed * 1_000_003 + n,
                compiled=not args.eager,
            )
            for n in left
        ]
        for done, job in enumerate(as_completed(jobs), 1):
            views += job.result()
            rate = views / (time.monotonic() - started)
            print(f"chunk {done}/{len(left)}  {views} views  {rate:.0f} views/s", flush=True)


if __name__ == "__main__":
    main()
