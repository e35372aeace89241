"""Whether a server keeps what it promised while it is killed again and again, and whether its memory grows.

    python benchmarks/soak.py chaos [--minutes M] [--seed N] [--json OUT]
    python benchmarks/soak.py memory [--backbone NAME] [--images N] [--json OUT]

`chaos`: clients embed, upsert, search, train, label and delete while the server is killed (SIGKILL, now and then
SIGTERM) and started again. Each knows what it was told; at quiet points everything is compared with that, and searches
with brute force. What was never answered may be either way. In the last third of the time the server lives on, and
its memory and file handles must not grow. Ends with 1 where anything is lost, risen again, wrong or growing.

`memory`: resident memory over one long EmbedStream. After a warm-up it is read every so many images. Each message has
bytes of its own, so no cache can answer, and every answer is counted. The drift is the last reading over the first one;
the peak since the start is told too, where the system keeps it. Both need /proc, as Linux has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.processes import PROC
from embedding.facts import run_facts
from embedding.images import photographs
from embedding.weights import weights_for
from soaking import memory
from soaking.chaos import Victim, soak


def main() -> None:
    """Run one of the two, print the outcome on stdout and progress on stderr, write JSON."""
    options = _options()
    if not PROC.joinpath("self/statm").exists():
        raise SystemExit("this needs /proc to read the server's memory")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`: no process is left behind
    found = _chaos(options) if options.mode == "chaos" else memory.watch(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    if options.mode == "chaos" and not found["soak"]["passed"]:
        raise SystemExit(1)


def _chaos(options: argparse.Namespace) -> dict[str, Any]:
    pictures = photographs()
    facts = run_facts(pictures)
    with tempfile.TemporaryDirectory(prefix="likewise-soak-") as scratch:
        weights, _ = weights_for("likewise-tiny", Path(scratch))
        victim = Victim(Path(scratch), weights)
        try:
            outcome = asyncio.run(soak(victim, pictures.data, options.minutes, options.seed))
        finally:
            victim.server.child.stop()
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(outcome["operations"].items()))
    print(f"{outcome['operations_total']} operations ({kinds}), {outcome['unanswered']} never answered")
    print(f"{outcome['kills']} kills, {outcome['terminations']} terminations, {outcome['checks']} checks,", end=" ")
    print(f"{outcome['searches_compared']} searches compared with brute force")
    print(f"{outcome['lost']} lost, {outcome['resurrected']} resurrected, {outcome['changed']} changed,", end=" ")
    print(f"{outcome['wrong']} wrong answers")
    rss, handles = outcome["rss_mib"], outcome["file_handles"]
    print(f"resident memory {rss['first']:.0f} to {rss['last']:.0f} MiB,", end=" ")
    print(f"file handles {handles['first']:.0f} to {handles['last']:.0f}")
    for complaint in outcome["complaints"]:
        print(f"  {complaint}")
    print("passed" if outcome["passed"] else "FAILED")
    return {**facts, "minutes": options.minutes, "seed": options.seed, "soak": outcome}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="chaos|memory")
    chaos = modes.add_parser("chaos", help="kill the server under load and look at what is left")
    chaos.add_argument("--minutes", type=float, default=10.0, help="how long; default 10")
    chaos.add_argument("--seed", type=int, default=0, help="of what the clients do and when the server ends; default 0")
    growth = modes.add_parser("memory", help="watch the server's memory over one long stream")
    memory.add_options(growth)
    for mode in (chaos, growth):
        mode.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
