"""The speed of embedding in one run: the ceiling, a plain loop, the server over loopback, and LitServe.

    python benchmarks/embed.py [--backbone NAME ...] [--rounds N] [--quick] [--json OUT]

 (a) the ceiling: the server's own decoding and forward in one process, overlapped, in full batches, no server;
 (b) the plain loop that people write first: Pillow, torchvision's preset, the eager network in fp32;
 (c) the server: 1, 8 and 32 closed-loop clients of unary calls, one EmbedStream with an image a message and one with
     16, the client library's embed(list);
 (d) LitServe with its ordinary recipe (`--litserve tuned` for a faster one), 32 closed-loop clients over HTTP.

Then Poisson arrivals at parts of what 32 clients reached. All read the same photographs, and each message has bytes
of its own. Everything runs in processes of their own on the same cores, the generator of load among them, in
interleaved rounds; a figure is the median of its rounds, a ratio one of two such medians. Weights are random where
LIKEWISE_WEIGHTS_DIR has none: speed does not depend on their values, but --precision auto may.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.machine import warn_if_busy
from embedding import litserve_peer
from embedding.facts import run_facts
from embedding.images import photographs
from embedding.measure import Plan, Results, measure
from embedding.report import document, table

DEFAULT = ["likewise-tiny", "mobilenet_v3_small", "resnet50", "vit_b_16"]
RECIPES = {"ordinary": ("ordinary",), "tuned": ("tuned",), "both": ("ordinary", "tuned"), "none": ()}


def main() -> None:
    """Measure each backbone, print the table, write JSON."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`: no process is left behind
    recipes = RECIPES[options.litserve]
    if recipes and not litserve_peer.installed():
        _say("LitServe is left out, it is not installed: pip install 'likewise[bench]'")
        recipes = ()
    plan = Plan(
        rounds=options.rounds or (1 if options.quick else 3),
        seconds=options.seconds or (1.0 if options.quick else 4.0),
        open_seconds=0.0 if options.no_open else options.open_seconds or (4.0 if options.quick else 12.0),
        precision=options.precision,
        litserve=recipes,
        settle_s=options.settle,
    )
    pictures = photographs()
    facts = run_facts(pictures)
    warn_if_busy(facts)
    facts["plan"] = {"rounds": plan.rounds, "seconds": plan.seconds, "open_seconds": plan.open_seconds}
    done: list[Results] = []
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as scratch:
        for name in options.backbone or DEFAULT:
            results = measure(name, pictures, plan, Path(scratch), lambda text, name=name: _say(f"{name}: {text}"))  # type: ignore[misc]  # binds it now
            if not results.facts["settled"]:
                _say(f"{name}: the server was still busy when measuring began: its figures may be too low")
            done.append(results)
            if options.json:  # after each, so that an interrupted run leaves what it has
                options.json.write_text(json.dumps(document(facts, done), indent=2, allow_nan=False) + "\n")
    _explain(facts, plan, done)
    print()
    print(table(done))


def _explain(facts: dict[str, Any], plan: Plan, done: list[Results]) -> None:
    """Print what stands above the table: of which machine, pictures and networks it speaks."""
    machine, images = facts["machine"], facts["images"]
    print(f"{machine['processor']}, {machine['cores']} cores, which server and load share")
    print(f"likewise {facts['likewise']}, torch {facts['versions']['torch']}")
    print(f"{images['count']} pictures of {images['mean_bytes'] / 1000:.0f} kB on average: {images['source']}")
    print(f"medians of {plan.rounds} interleaved round(s) of about {plan.seconds:g} s each")
    for results in done:
        form = "compiled" if results.facts["compiled"] else "eager"
        print(f"{results.backbone}: {results.facts['precision']}, {form}, {results.facts['weights']} weights")
    if not plan.litserve:
        print("LitServe: not measured")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", metavar="NAME", help=f"repeatable; default: {' '.join(DEFAULT)}")
    parser.add_argument("--rounds", type=int, help="turns of each measurement; default 3")
    parser.add_argument("--seconds", type=float, help="about how long one turn takes; default 4")
    parser.add_argument("--open-seconds", type=float, help="how long one open loop takes; default 12")
    parser.add_argument("--no-open", action="store_true", help="leave the open loops out")
    parser.add_argument("--quick", action="store_true", help="one round of short turns, for a first look")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--litserve", default="ordinary", choices=list(RECIPES), help="its recipes; default ordinary")
    parser.add_argument("--settle", type=float, default=900.0, help="patience with a server that still prepares, s")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
