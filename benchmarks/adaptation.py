"""What an adaptation does for heads carried from one kind of pictures to another.

    LIKEWISE_SHARED=… python benchmarks/adaptation.py [--backbone NAME ...] [--kind KIND] [--out JSON]

PACS: seven classes as photographs, paintings, cartoons and sketches, 20 pictures each. For each ordered pair a head is
trained on all of one kind, by `train_head(adapt=..., target=...)` through a server, and asked all of the other, whose
labels are used for nothing else. The table has the accuracy on the target, and the 95 % interval of the paired gain, by
the head's own report. The whole of the targets are known when the map is fitted: with fewer it is worse.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.machine import machine_facts
from common.server import LikewiseServer
from embedding.images import SHARED
from likewise import Client

if TYPE_CHECKING:
    from likewise.head_results import AdaptationReport

KINDS = ("photo", "art_painting", "cartoon", "sketch")
METHODS = ("center", "coral", "ot")
COLUMNS = (27, 8, 24, 24, 24)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["likewise-tiny", "mobilenet_v2"])
    parser.add_argument("--kind", default="ridge")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if not (SHARED / "data/pacs-photo").is_dir():
        raise SystemExit(f"no pictures at {SHARED / 'data'}: set LIKEWISE_SHARED")
    found = {backbone: _measured(backbone, chosen.kind) for backbone in chosen.backbone}
    if chosen.out:
        facts = machine_facts(["numpy", "scikit-learn", "torch"]) | {"kind": chosen.kind, "accuracies": found}
        chosen.out.write_text(json.dumps(facts, indent=1) + "\n")


def _measured(backbone: str, kind: str) -> dict[str, dict[str, Any]]:
    """Return each pair's reports by method."""
    print(_row(backbone, "without", *METHODS))
    reports: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = LikewiseServer(backbone, SHARED / "weights", "fp32", Path(folder), options=["--compile", "off"])
        try:
            with Client(server.address) as lw:
                for name in KINDS:
                    files = sorted((SHARED / f"data/pacs-{name}").glob("*/*"))
                    made = lw.create_collection(name)
                    made.add(files, labels=[file.parent.name for file in files]).raise_for_errors()
                for source, target in itertools.permutations(KINDS, 2):
                    pair = f"{source} to {target}"
                    of = {m: _report(lw, source, target, m, kind) for m in METHODS}
                    reports[pair] = {method: dataclasses.asdict(report) for method, report in of.items()}
                    print(_row(pair, _percent(of["ot"].accuracy_before), *(_gain(of[m]) for m in METHODS)))
        finally:
            server.child.stop()
    means = [_mean(reports, "ot", "accuracy_before"), *(_mean(reports, m, "accuracy_after") for m in METHODS)]
    print(_row("mean", *map(_percent, means)))
    return reports


def _report(lw: Client, source: str, target: str, method: str, kind: str) -> AdaptationReport:
    report = lw.collection(source).train_head("h", kind, adapt=method, target=target).adaptation
    if report is None or report.accuracy_after is None:
        raise SystemExit(f"{source} to {target}: nothing was measured")
    return report


def _mean(reports: dict[str, dict[str, Any]], method: str, name: str) -> float:
    return statistics.mean(float(of[method][name]) for of in reports.values())


def _gain(report: AdaptationReport) -> str:
    low, high = (100 * (each or 0.0) for each in (report.gain_low, report.gain_high))
    return f"{_percent(report.accuracy_after)} ({low:+.1f} to {high:+.1f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _row(*cells: str) -> str:
    return " ".join(f"{cell:{width}}" for cell, width in zip(cells, COLUMNS, strict=True)).rstrip()


if __name__ == "__main__":
    main()
