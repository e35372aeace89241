"""The speed of search in one run: plain FAISS, hnswlib, milvus-lite, likewise in process and over loopback.

    python benchmarks/search.py [--n N] [--parts abcde] [--peers hnswlib,milvus] [--peer-n N] [--quick] [--json OUT]

 (a) plain FAISS: configurations tuned on one half of the queries to recall at 10 of 0.99 and timed on the other half;
 (b) hnswlib and milvus-lite, tuned alike, in an environment of their own that is made when first needed;
 (c) likewise's store in process: durable ingestion, the background build, searches for ids and for whole items;
 (d) likewise over gRPC: batches, single queries of 1 and 8 callers, idle and while it ingests or builds;
 (e) filters that match 50 % to 0.01 % of the rows, and a label.

Vectors are made by a seed (benchmarks/searching/synthetic.py has the recipe) or, with `--data shared`, those of the
shared images by likewise-tiny and more like them. Each contestant is a process of its own with all cores, stopped
while others are measured; a figure is the median of interleaved rounds, a ratio one of two such medians. OpenMP's
threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE, as `likewise serve` sets it) unless the environment says else.

What was built is kept in `--scratch`, so that an interrupted run goes on where it was; what ratios are made of is
measured anew each time. `--fresh` builds likewise's part again. With `--peer-n` the peers run at a smaller size, and
FAISS and likewise again at that size beside them: no ratio is one of two sizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.machine import machine_facts, warn_if_busy
from searching import peers as peers_module
from searching.contest import build_faiss, build_likewise, build_peer, contest, data_directory, prepare
from searching.data import Dataset
from searching.filtering import filtering
from searching.plan import CENTRES_KIND, SHARED_KIND, Plan
from searching.report import document, table
from searching.results import Results
from searching.serving import serving
from searching.stages import ENVIRONMENT

PARTS = "abcde"
PACKAGES = ("numpy", "faiss-cpu", "faiss-gpu", "grpcio", "protobuf")
DEFAULT_N, QUICK_N = 1_000_000, 20_000
SHARED_DIM = 512  # of likewise-tiny


def main() -> None:
    """Measure each size, print the table, write JSON."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`: no process is left behind
    facts = machine_facts(PACKAGES) | ENVIRONMENT
    warn_if_busy(facts)
    with tempfile.TemporaryDirectory(prefix="likewise-search-") as passing:
        scratch = options.scratch or Path(passing)
        plan = Plan(
            scratch=str(scratch.resolve()),
            n=options.n or (QUICK_N if options.quick else DEFAULT_N),
            dim=SHARED_DIM if options.data == SHARED_KIND else options.dim,
            kind=options.data,
            seed=options.seed,
            rounds=options.rounds or (1 if options.quick else 3),
            seconds=options.seconds or (1.0 if options.quick else 4.0),
        )
        scratch.mkdir(parents=True, exist_ok=True)
        wanted, python, left_out = _peers(options)
        done: list[Results] = []
        for size in dict.fromkeys((plan.n, options.peer_n or plan.n)):
            peers = wanted if size == (options.peer_n or plan.n) else []
            parts = options.parts if size == plan.n else options.parts.translate({ord(part): None for part in "de"})
            results = Results(plan.at(size))
            done.append(results)
            for _ in _measured(results, parts, peers, python, options):
                if options.json:  # after each part, so that an interrupted run leaves what it has
                    run = {**facts, "left_out": left_out}
                    options.json.write_text(json.dumps(document(run, done), indent=2, allow_nan=False) + "\n")
    print(f"{facts['machine']['processor']}, {facts['machine']['cores']} cores, which server and load share")
    print(f"likewise {facts['likewise']}, OMP_WAIT_POLICY={facts['OMP_WAIT_POLICY']}")
    print(f"medians of {plan.rounds} interleaved round(s) of about {plan.seconds:g} s each")
    for peer, why in left_out.items():
        print(f"{peer}: NOT MEASURED, {why}")
    if wanted and options.peer_n not in (None, plan.n):
        print(f"{', '.join(wanted)}: at {options.peer_n} rows, beside FAISS and likewise at that size")
    print(table(done))


def _measured(
    results: Results, parts: str, peers: list[str], python: Path | None, options: argparse.Namespace
) -> Iterator[None]:
    """Run the parts at one size, and yield after each."""
    plan = results.plan

    def say(text: str) -> None:
        _say(f"[{time.strftime('%H:%M:%S')}] {plan.n}: {text}")

    if options.fresh:
        shutil.rmtree(data_directory(plan), ignore_errors=True)
        (plan.folder / "likewise.json").unlink(missing_ok=True)
    prepare(plan, filters="e" in parts, say=say)
    if "a" in parts:
        results.faiss = build_faiss(plan, Dataset(plan).dim, options.candidates, say)
    if "b" in parts and python is not None:
        results.peers = {peer: build_peer(plan, peer, python, say) for peer in peers}
    likewise = bool({"c", "d", "e"} & set(parts))
    if likewise:
        results.likewise = build_likewise(plan, say)
    yield
    if {"a", "b", "c"} & set(parts):
        made = contest(plan, results.faiss, results.peers, python, say, likewise="c" in parts)
        results.contest, results.recalls = made
        yield
    if "e" in parts:
        results.filtering, results.filters = filtering(plan, say)
        yield
    if "d" in parts:
        results.serving, results.busy = serving(plan, say)
        yield


def _peers(options: argparse.Namespace) -> tuple[list[str], Path | None, dict[str, str]]:
    """Return the peers to run, their interpreter, and why others are left out."""
    wanted = [peer for peer in options.peers.split(",") if peer and peer != "none"]
    unknown = set(wanted) - set(peers_module.PEERS)
    if unknown:
        raise SystemExit(f"no such peer: {', '.join(unknown)}; there are {', '.join(peers_module.PEERS)}")
    if "b" not in options.parts:
        wanted = []
    left_out = {peer: "left out by the options" for peer in peers_module.PEERS if peer not in wanted}
    if not wanted:
        return [], None, left_out
    try:
        return wanted, peers_module.interpreter(), left_out
    except RuntimeError as error:
        _say(f"the peers cannot be installed: {error}")
        return [], None, left_out | dict.fromkeys(wanted, f"not installed: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, help=f"rows; default {DEFAULT_N}, with --quick {QUICK_N}")
    parser.add_argument("--dim", type=int, default=512, help="dimensions of made vectors; default 512")
    parser.add_argument("--data", default=CENTRES_KIND, choices=[CENTRES_KIND, SHARED_KIND])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--parts", default=PARTS, type=_parts, help=f"which of {PARTS}; default all")
    parser.add_argument("--peers", default=",".join(peers_module.PEERS), help="by commas, or none; default all")
    parser.add_argument("--peer-n", type=int, metavar="N", help="rows for the peers and what they are compared with")
    parser.add_argument("--candidates", action="append", default=[], metavar="FACTORY", help="of FAISS; repeatable")
    parser.add_argument("--rounds", type=int, help="turns of each measurement; default 3")
    parser.add_argument("--seconds", type=float, help="how long one turn takes; default 4")
    parser.add_argument("--quick", action="store_true", help="one round of short turns on few rows, for a first look")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="keep data and builds here; default: thrown away")
    parser.add_argument("--fresh", action="store_true", help="ingest and build likewise's part again")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    return parser.parse_args()


def _parts(text: str) -> str:
    if not text or set(text) - set(PARTS):
        raise argparse.ArgumentTypeError(f"some of {PARTS}")
    return text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
