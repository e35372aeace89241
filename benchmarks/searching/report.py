"""One table for people, one document for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.figures import section
from searching.contest import MEASURES, finalists
from searching.ratios import ratios
from searching.results import Results
from searching.stages import Facts, median

WIDTH = 50
COLUMN = 16
GIB = 2**30
Row = tuple[str, list[str]]


def document(run: dict[str, Any], all_results: list[Results]) -> dict[str, Any]:
    """Return everything that was measured, for JSON."""
    return {**run, "sizes": [results.facts(ratios(results)) for results in all_results]}


def table(all_results: list[Results]) -> str:
    """Return the table: a block for each size, the ratios last."""
    lines: list[str] = []
    for results in all_results:
        plan = results.plan
        lines += ["", f"=== {plan.n} x {plan.dim} ({plan.kind}), recall at {plan.k} ==="]
        for title, rows in (
            ("builds: seconds, peak GiB, without mapped files", _builds(results)),
            ("FAISS while tuned: setting, recall, queries/s", _tuned(results)),
            (f"in turns: recall, then queries/s: {plan.batch}, all at once, one; p50 ms of one", _contest(results)),
            ("filters: first use ms, recall, wrong counts, p50 ms, queries/s in batches", _filters(results)),
            ("over gRPC: queries/s, generator's part of a core", _serving(results)),
            ("while busy: p50 ms, p99 ms, calls", _busy(results)),
            ("ratios and promises", [(ratio.name, [ratio.verdict()]) for ratio in ratios(results)]),
        ):
            lines += section(title, rows, WIDTH, COLUMN)
    return "\n".join(lines)


def _builds(results: Results) -> Iterator[Row]:
    def row(name: str, seconds: float, facts: Facts) -> Row:
        return name, [f"{seconds:.1f}", f"{facts['peak_bytes'] / GIB:.2f}", f"{facts['peak_own_bytes'] / GIB:.2f}"]

    yield "the vectors alone", ["", f"{results.plan.vector_bytes / GIB:.2f}", ""]
    for factory, facts in results.faiss.items():
        yield row(f"FAISS {factory}", facts["build_s"], facts)
    for peer, facts in results.peers.items():
        yield row(f"{peer} {facts['version']}", facts["build_s"], facts)
    if results.likewise:
        facts = results.likewise
        state = facts["state"]
        yield row(
            f"likewise, ingest and build: {state['kind']}", facts["ingest_cold"]["seconds"] + facts["build_s"], facts
        )
        yield "  of it the build, after the last item", [f"{facts['build_s']:.1f}", "", ""]
        measured = state["measured_recall"]
        recall = "exact" if measured is None else f"recall {measured:.4f} {state['operating_point']}"
        yield "  as it says itself", [f"  {recall}"]


def _tuned(results: Results) -> Iterator[Row]:
    chosen = finalists(results.faiss)
    for factory, facts in results.faiss.items():
        tuned = facts["tuned"]
        setting = " ".join(f"{name}={value}" for name, value in (tuned["setting"] or {}).items())
        if tuned["setting"] is None:
            setting = "not reached"
        rate = f"{tuned['queries_per_s']:.0f}" + ("*" if factory in chosen else "")
        yield factory, [f"{tuned['recall']:.4f}", rate, f"  {setting}"]


def _contest(results: Results) -> Iterator[Row]:
    for name, facts in results.recalls.items():
        rates = [f"{results.rate(name, measure):.0f}" for measure in MEASURES]
        p50 = median(results.contest, f"{name}: single", "p50_ms")
        yield name, [f"{facts['recall']:.4f}", *rates, f"{p50:.3f}"]


def _filters(results: Results) -> Iterator[Row]:
    for name, facts in results.filters.items():
        p50 = median(results.filtering, f"{name}: single", "p50_ms")
        rate = median(results.filtering, f"{name}: batch", "queries_per_s")
        figures = [f"{facts['first_ms']:.1f}", f"{facts['recall']:.4f}", str(facts["wrong_counts"])]
        yield name, [*figures, f"{p50:.3f}", f"{rate:.0f}"]


def _serving(results: Results) -> Iterator[Row]:
    for name, readings in results.serving.items():
        cells = [f"{median(results.serving, name, 'queries_per_s'):.0f}"]
        if "generator_cpu" in readings[0]:
            cells.append(f"{median(results.serving, name, 'generator_cpu'):.2f}")
        yield name, cells


def _busy(results: Results) -> Iterator[Row]:
    for what, facts in results.busy.items():
        for callers, figures in facts.items():
            if isinstance(figures, dict):
                cells = [f"{figures['p50_ms']:.2f}", f"{figures['p99_ms']:.2f}", str(figures["calls"])]
                yield f"{what}, {callers} caller(s)", cells
