"""The figures that are promised, beside what the run gave."""

from __future__ import annotations

from collections.abc import Iterator

from common.figures import Ratio, over
from searching.contest import MEASURES
from searching.filtering import UNFILTERED
from searching.results import Results
from searching.serving import BATCH_CALLERS, CALLERS, pooled
from searching.stages import Facts, Readings, median

OVER_FAISS, RECALL = 0.9, 0.99
OVER_PEER = {"hnswlib": 5.0, "milvus": 20.0}
WIRE = 0.7
P50_MS, P99_MS = 3.0, 15.0
FILTERED = 10.0
ITEMS_PER_S = 20_000.0
BUSY = 3.0
START_S = 5.0
MEMORY = 2.0


def ratios(results: Results) -> list[Ratio]:
    """Return every promise at one size, each from medians of this run."""
    return [*_contest(results), *_likewise(results), *_filters(results), *_serving(results)]


def _contest(results: Results) -> Iterator[Ratio]:
    if "likewise" not in results.recalls:
        return
    yield Ratio("likewise's recall at 10", results.recalls["likewise"]["recall"], "≥", RECALL)
    for measure in MEASURES:
        ours = results.rate("likewise", measure)
        target = OVER_FAISS if measure == "batch" else None
        best, _ = results.best_faiss(measure)
        if best is not None:
            yield Ratio(f"{measure}: likewise / best plain FAISS", over(ours, best), "≥", target)
            whole_items = results.rate("likewise, items", measure)
            yield Ratio(f"{measure}: the same, whole items", over(whole_items, best))
        for peer in results.peers:
            target = OVER_PEER[peer] if measure == "batch" else None
            yield Ratio(f"{measure}: likewise / {peer}", over(ours, results.rate(peer, measure)), "≥", target)


def _likewise(results: Results) -> Iterator[Ratio]:
    facts = results.likewise
    if not facts:
        return
    yield Ratio("ingest in process, cold, items/s", facts["ingest_cold"]["items_per_s"], "≥", ITEMS_PER_S)
    yield Ratio("ingest in process, warm, items/s", facts["ingest_warm"]["items_per_s"], "≥", ITEMS_PER_S)
    size = results.plan.vector_bytes
    yield Ratio("peak memory of ingest and build, all / vectors", facts["peak_bytes"] / size, "≤", MEMORY)
    yield Ratio("  of it without mapped files", facts["peak_own_bytes"] / size)
    yield Ratio("  of the process that builds, if there is one", facts["peak_child_bytes"] / size)
    yield Ratio("start, files evicted, s to an answer", facts["reopen_evicted"]["answered_s"], "≤", START_S)
    yield Ratio("start, files in the page cache, s", facts["reopen"]["answered_s"], "≤", START_S)


def _filters(results: Results) -> Iterator[Ratio]:
    readings = results.filtering
    if not readings:
        return
    names = [name for name in results.filters if name != UNFILTERED]
    slow = [_over_unfiltered(readings, name, "single", "p50_ms") for name in names]
    yield Ratio("slowest filter / none, p50 of one query", max(slow), "≤", FILTERED)
    slow = [1 / _over_unfiltered(readings, name, "batch", "queries_per_s") for name in names]
    yield Ratio("slowest filter / none, time of a batch", max(slow), "≤", FILTERED)
    yield Ratio("least recall with a filter", min(results.filters[name]["recall"] for name in names), "≥", RECALL)
    wrong = sum(results.filters[name]["wrong_counts"] for name in names)
    yield Ratio("queries with other than min(k, matching) hits", float(wrong), "≤", 0.0)


def _over_unfiltered(readings: Readings, name: str, measure: str, key: str) -> float:
    return (median(readings, f"{name}: {measure}", key) or 0.0) / (
        median(readings, f"{UNFILTERED}: {measure}", key) or 1.0
    )


def _serving(results: Results) -> Iterator[Ratio]:
    readings = results.serving
    if not readings:
        return
    for form, target in (("items", WIRE), ("ids", WIRE)):
        local = median(readings, f"in process, {form}", "queries_per_s")
        rates = {c: median(readings, f"batches, {form}, {c} callers", "queries_per_s") for c in BATCH_CALLERS}
        for callers, rate in rates.items():
            name = f"gRPC batches, {callers} caller(s), {form} / in process"
            yield Ratio(name, over(rate, local), "≥", target if callers == 1 else None)
    yield from _latencies(results)
    yield Ratio("ingest over gRPC, alone, items/s", results.busy["ingest alone"]["items_per_s"], "≥", ITEMS_PER_S)
    beside = results.busy["ingest beside searches"]["items_per_s"]
    yield Ratio("ingest over gRPC, beside searches, items/s", beside)


def _latencies(results: Results) -> Iterator[Ratio]:
    """Single queries over gRPC: idle beside what is promised, and busy beside idle."""
    idle: dict[int, Facts] = {c: pooled(results.serving[f"single, {c} callers"]) for c in CALLERS}
    promised = {max(CALLERS): (P50_MS, P99_MS)}
    for callers, facts in idle.items():
        p50, p99 = promised.get(callers, (None, None))
        yield Ratio(f"gRPC, {callers} caller(s), p50 ms", facts["p50_ms"], "≤", p50)
        yield Ratio(f"gRPC, {callers} caller(s), p99 ms", facts["p99_ms"], "≤", p99)
    for what in ("while ingesting", "while building"):
        for callers, facts in idle.items():
            busy: Facts = results.busy.get(what, {}).get(str(callers), {})
            yield Ratio(f"p50 {what} / idle, {callers} caller(s)", over(busy.get("p50_ms"), facts["p50_ms"]))
            value = over(busy.get("p99_ms"), facts["p99_ms"])
            yield Ratio(f"p99 {what} / idle, {callers} caller(s)", value, "≤", BUSY)
