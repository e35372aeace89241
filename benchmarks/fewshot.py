"""Heads beside easyfsl, scikit-learn and pytorch-ood on the same vectors of the same episodes.

    python benchmarks/fewshot.py [--parts few-way,all-way,uneven,unknown,time] [--backbones ...] [--quick] [--json OUT]

 few-way   5 classes, 1 and 5 examples of each, 15 queries of each, 600 episodes a set;
 all-way   all classes of a set, 1, 5, 10 and 20 examples, 10 draws;
 uneven    5 classes, 5 examples, queries in proportions drawn from Dirichlet(2);
 unknown   5 known classes and 5 others of the same set (4 and 3 of seven), and pictures of another set: the area under
           the ROC curve of likewise's novelty and of pytorch-ood's scores, and what the head's own threshold does;
 time      training on 100 classes of 20 examples of 1280 dimensions, classifying by 10,000 examples.

The sets are those of $LIKEWISE_SHARED/data; what is absent is named. The vectors are the server's own, kept by
fingerprint under build/fewshot. benchmarks/episodes/manifest.json says which pictures every episode is made of. The
collection's mean is that of a set without the queries. Intervals are t-intervals of 95 % over episodes; differences are
paired. A grid of logistic regressions and scikit-learn's LDA are asked the first episodes only (--slow).

It wants the extra `fewshot-bench`: pip install 'likewise[server,timm,fewshot-bench]'.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; small matrices gain nothing by threads
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from common.figures import section
from common.machine import machine_facts, warn_if_busy
from episodes import manifest, pictures, report, timing
from episodes.contest import Cell, Counts, run
from episodes.pictures import PictureSet, Vectors
from likewise_server.errors import LikewiseError

PARTS = {part.name: part for part in manifest.PARTS}
TIME = "time"
BACKBONES = ("mobilenet_v2", "likewise-tiny")
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "easyfsl", "pytorch-ood")
QUICK = Counts(episodes=20, slow=4, seeds=2, uneven=10, unknown=4)


def main() -> None:
    """Measure, print the tables, write JSON."""
    options = _options()
    facts = machine_facts(PACKAGES) | {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    warn_if_busy(facts)
    began = time.monotonic()
    counts = QUICK if options.quick else Counts(options.episodes, options.slow)
    parts = [PARTS[name] for name in options.parts if name != TIME]
    sets, strangers, absent = _sets() if parts else ([], None, {})
    cells: list[Cell] = []
    spaces = {}
    if parts and strangers is not None:
        for backbone in options.backbones:
            try:
                spaces[backbone], vectors = pictures.vectors(backbone, [*sets, strangers])
            except LikewiseError as error:
                absent[backbone] = str(error)
                continue
            cells += _contests(backbone, sets, vectors, parts, counts, options.workers)
    timings = timing.measure(1 if options.quick else 5, quick=options.quick) if TIME in options.parts else None
    ratios = timings.ratios() if timings else []
    document = {
        **facts,
        "counts": {name: getattr(counts, name) for name in counts.__dataclass_fields__},
        "spaces": spaces,
        "absent": absent,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "averages": report.averages(cells),
        "behind_a_peer": {"of": report.comparisons(cells), "where": report.worst(cells)},
        "seconds": timings.seconds if timings else {},
        "ratios": [ratio.facts() for ratio in ratios],
        "cells": [report.facts(cell) for cell in cells],
    }
    if options.json:
        options.json.write_text(report.written(document))
    for what, why in absent.items():
        print(f"{what}: NOT MEASURED, {why}")
    print(report.table(cells))
    if timings:
        rows = [(name, [f"{1e3 * seconds:.1f}"]) for name, seconds in timings.seconds.items()]
        print("\n".join(section("milliseconds", rows, 40, 12)))
        print("\n".join(section("ratios", [(ratio.name, [ratio.verdict()]) for ratio in ratios], 40, 20)))
    if differing := sum(cell.differing for cell in cells):
        sys.exit(f"ncm and easyfsl's SimpleShot differ in {differing} answers: they compute the same")


def _sets() -> tuple[list[PictureSet], PictureSet | None, dict[str, str]]:
    """Return the sets that are as the manifest says, the strangers, and why others are not there."""
    found, absent = [], {}
    for name in pictures.SETS:
        one = pictures.read_set(name)
        why = f"{name} is not under LIKEWISE_SHARED/data" if one is None else manifest.check(one)
        if one is None or why:
            absent[name] = why
        else:
            found.append(one)
    strangers = pictures.read_set(pictures.STRANGERS)
    if strangers is None:
        absent[pictures.STRANGERS] = "it is not under LIKEWISE_SHARED/data: set LIKEWISE_SHARED"
    return found, strangers, absent


def _contests(
    backbone: str,
    sets: list[PictureSet],
    vectors: dict[str, Vectors],
    parts: list[manifest.Part],
    counts: Counts,
    workers: int,
) -> Iterator[Cell]:
    """Run every set in a process of its own, the largest first, and return the cells in the order of the sets."""
    done: dict[str, list[Cell]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {}
        for one in sorted(sets, key=lambda one: -len(one.classes)):
            other = "monkeys10" if one.name.startswith("caltech") else pictures.STRANGERS
            far = vectors.get(other, vectors[pictures.STRANGERS])
            far = far[:: max(1, len(far) // 60)]
            waiting[pool.submit(run, backbone, one, vectors[one.name], far, parts, counts)] = one.name
        for future in as_completed(waiting):
            done[waiting[future]] = future.result()
            print(f"[{time.strftime('%H:%M:%S')}] {backbone}: {waiting[future]}", file=sys.stderr, flush=True)
    for one in sets:
        yield from done[one.name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*PARTS, TIME]
    parser.add_argument("--parts", type=_parts, default=every, help=f"some of {','.join(every)}; default all")
    parser.add_argument("--backbones", type=lambda text: text.split(","), default=list(BACKBONES), help="by commas")
    parser.add_argument("--episodes", type=int, default=Counts().episodes, help="of five classes a set; default 600")
    parser.add_argument("--slow", type=int, default=Counts().slow, help="of them for the slow systems; default 30")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default one a core")
    parser.add_argument("--quick", action="store_true", help="few episodes of everything, for a first look")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - {*PARTS, TIME}:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    main()
