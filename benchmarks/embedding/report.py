"""One table for people, one document for programs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from common.figures import section
from embedding.arrivals import OpenReading
from embedding.measure import LOADS, TOGETHER, Results
from embedding.ratios import open_median, ratios

WIDTH = 38
COLUMN = 20
RATES = {
    "loop_1": "(b) plain loop, batch 1",
    "loop_16": "(b) plain loop, batch 16",
    "clients_1": "(c) server, 1 client",
    "clients_8": "(c) server, 8 clients",
    "clients_32": "(c) server, 32 clients",
    "bulk": "(c) server, one EmbedStream",
    f"bulk_{TOGETHER}": f"(c) the same, {TOGETHER} images a message",
    "library": "(c) server, library's embed(list)",
    "litserve_ordinary": "(d) LitServe, 32 clients",
    "litserve_tuned": "(d) LitServe tuned, 32 clients",
}
LATENCIES = {"clients_1": "1 client", "clients_8": "8 clients", "clients_32": "32 clients"}

Row = tuple[str, list[str]]


def document(run: dict[str, Any], all_results: list[Results]) -> dict[str, Any]:
    """Return everything that was measured, for JSON."""
    return {**run, "backbones": [_facts(results) for results in all_results]}


def table(all_results: list[Results]) -> str:
    """Return the table: a column per backbone."""
    column = max(COLUMN, *(len(results.backbone) + 2 for results in all_results))
    lines = [" " * WIDTH + "".join(f"{results.backbone:>{column}}" for results in all_results)]
    for title, rows in (
        ("images/s", _rates(all_results)),
        ("milliseconds", _latencies(all_results)),
        ("open loop, Poisson arrivals", _open(all_results)),
        ("ratios", _ratios(all_results)),
    ):
        lines += section(title, rows, WIDTH, column)
    return "\n".join(lines)


def _facts(results: Results) -> dict[str, Any]:
    rate, batch = results.ceiling()
    return {
        "backbone": results.backbone,
        **results.facts,
        "ceiling": {"rate": rate, "batch": batch},
        "measurements": {
            name: {"rate": results.rate(name), "rounds": [reading.facts() for reading in readings]}
            for name, readings in results.readings.items()
        },
        "pieces": results.pieces,
        "open_loops": [reading.facts() for readings in results.loops.values() for reading in readings],
        "ratios": [ratio.facts() for ratio in ratios(results)],
    }


def _rates(all_results: list[Results]) -> Iterator[Row]:
    yield "(a) ceiling, no server", [f"{results.ceiling()[0]:.1f}" for results in all_results]
    yield "    its best batch", [str(results.ceiling()[1]) for results in all_results]
    for name, title in RATES.items():
        cells = [_number(results.rate(name)) for results in all_results]
        if any(cells):
            yield title, cells
    shares = [results.median(lambda reading: reading.generator_cpu, "bulk") for results in all_results]
    yield "    generator's part of a core, bulk", [f"{share:.2f}" for share in shares]
    shares = [results.median(lambda reading: reading.generator_cpu, "clients_32") for results in all_results]
    yield "    the same, 32 clients", [f"{share:.2f}" for share in shares]


def _latencies(all_results: list[Results]) -> Iterator[Row]:
    for piece, title in (("decode_ms", "decode + preprocess, alone"), ("forward_ms", "forward at batch 1, alone")):
        yield title, [f"{statistics.median(p[piece] for p in results.pieces):.2f}" for results in all_results]
    for name, title in LATENCIES.items():
        for percent in ("p50_ms", "p99_ms"):
            cells = [results.median(lambda r, key=percent: r.facts()[key], name) for results in all_results]  # type: ignore[misc]  # binds it now
            yield f"{title}, {percent.removesuffix('_ms')}", [f"{cell:.1f}" for cell in cells]


def _open(all_results: list[Results]) -> Iterator[Row]:
    values: dict[str, Callable[[OpenReading], float | None]] = {
        "offered/s": lambda r: r.offered_per_s,
        "answered/s (goodput)": lambda r: r.goodput_per_s,
        "accepted, p50 ms": lambda r: r.accepted_p50_ms,
        "accepted, p99 ms": lambda r: r.accepted_p99_ms,
        "rejected": lambda r: r.rejected,
        "rejected, told after ms, max": lambda r: r.rejected_max_ms,
        "rejected, told after ms, p99": lambda r: r.rejected_p99_ms,
        "p99 from when it was sent": lambda r: r.rejected_from_sent_p99_ms,
        "expired (5 s)": lambda r: r.expired,
        "other errors": lambda r: r.other,
        "generator late by ms, p99": lambda r: r.generator_late_p99_ms,
    }
    if not any(results.loops for results in all_results):
        return
    for load in LOADS:
        for title, value in values.items():
            cells = [_number(open_median(results.loops.get(load, []), value)) for results in all_results]
            yield f"{load:.0%}: {title}", [cell or "-" for cell in cells]


def _ratios(all_results: list[Results]) -> Iterator[Row]:
    columns = [{ratio.name: ratio for ratio in ratios(results)} for results in all_results]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield name, [column[name].verdict() if name in column else "-" for column in columns]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
