"""The figures that are promised, beside what the run gave."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from common.figures import Ratio, over
from embedding.arrivals import OpenReading
from embedding.measure import TOGETHER, Results

OVER_LOOP = {"resnet50": 2.5, "mobilenet_v3_small": 4.0}  # by backbone; the others have no target here
OVER_LITSERVE = {"resnet50": 4.0, "mobilenet_v3_small": 4.0}
TOLD_MS = 50.0
NORMAL, OVERLOAD = 0.8, 1.2  # of the capacity


def ratios(results: Results) -> list[Ratio]:
    """Return every promise about one backbone, each from medians of this run."""
    return [*_throughput(results), *_overload(results)]


def open_median(readings: list[OpenReading], value: Callable[[OpenReading], float | None]) -> float | None:
    """Return the median over the rounds that have the value."""
    values = [v for reading in readings if (v := value(reading)) is not None]
    return statistics.median(values) if values else None


def _throughput(results: Results) -> Iterator[Ratio]:
    name = results.backbone
    ceiling, _ = results.ceiling()
    bulk, many = results.rate(f"bulk_{TOGETHER}"), results.rate("clients_32")
    yield Ratio(f"bulk, {TOGETHER} images a message / ceiling", over(bulk, ceiling), "≥", 0.85)
    yield Ratio("bulk, an image a message / ceiling", over(results.rate("bulk"), ceiling))
    yield Ratio("32 clients / ceiling", over(many, ceiling), "≥", 0.75)
    yield Ratio("1 client p50 / (decode + forward)", over(client_p50(results), alone_ms(results)), "≤", 1.5)
    yield Ratio("bulk / plain loop at batch 16", over(bulk, results.rate("loop_16")), "≥", OVER_LOOP.get(name))
    best = max((rate for rate in (bulk, many) if rate is not None), default=None)
    for key in results.readings:
        if key.startswith("litserve_"):
            recipe = key.removeprefix("litserve_")
            target = OVER_LITSERVE.get(name) if recipe == "ordinary" else None
            yield Ratio(f"bulk or 32 clients / LitServe {recipe}", over(best, results.rate(key)), "≥", target)


def _overload(results: Results) -> Iterator[Ratio]:
    if not results.loops:
        return
    normal, overload = results.loops[NORMAL], results.loops[OVERLOAD]
    p99 = open_median(overload, lambda r: r.accepted_p99_ms)
    yield Ratio("p99 at 120 % / at 80 %", over(p99, open_median(normal, lambda r: r.accepted_p99_ms)), "≤", 3.0)
    yield Ratio("rejections told at 120 %, p99 ms", open_median(overload, lambda r: r.rejected_p99_ms), "≤", TOLD_MS)
    goodput = open_median(overload, lambda r: r.goodput_per_s)
    yield Ratio("goodput at 120 % / capacity", over(goodput, results.rate("clients_32")), "≥", 0.9)


def client_p50(results: Results) -> float:
    """Return one client's median latency in milliseconds."""
    return results.median(lambda reading: reading.facts()["p50_ms"], "clients_1")


def alone_ms(results: Results) -> float:
    """Return the milliseconds of one image with nothing around it: decoded, and through the network at batch 1."""
    return statistics.median(piece["decode_ms"] + piece["forward_ms"] for piece in results.pieces)
