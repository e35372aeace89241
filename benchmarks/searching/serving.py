"""Part d: the same searches over gRPC, idle and while the server ingests or builds."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.figures import percentile_ms
from common.processes import Child
from common.server import LikewiseServer
from likewise_server.store.policy import SEAL
from searching.candidates import lists_for
from searching.contest import data_directory
from searching.loader import NAME
from searching.plan import Plan
from searching.stages import Facts, Readings, Say, Seat, rounds, start

BATCH_CALLERS = (1, 2, 4)
CALLERS = (1, 8)
INGESTED = 100_000  # items at most: of a large collection a part that sets off no rebuild
SLICE_S = 1.0  # of searching while something else goes on
BEGIN_S = 15.0  # patience with a build that should begin
SETTLE_S = 900.0
WITHOUT_COMPILING = ("--set", "compile=off")  # no picture is embedded here


def serving(plan: Plan, say: Say) -> tuple[Readings, dict[str, Facts]]:
    """Return the readings of the idle server beside the store in process, and those of the busy one."""
    folder = plan.folder / "served"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    say("copying the data directory: what is ingested here is thrown away")
    shutil.copytree(data_directory(plan), folder / "data")
    try:
        with contextlib.ExitStack() as stack:
            server = LikewiseServer("likewise-tiny", folder, "auto", folder, options=WITHOUT_COMPILING)
            stack.callback(server.child.stop)
            say("waiting until the server is idle")
            server.settle(SETTLE_S)
            loader, ingester = (stack.enter_context(start(plan, "loader", server.address)) for _ in range(2))
            local = stack.enter_context(start(plan, "likewise_peer", str(data_directory(plan))))
            local.ask("open", timeout=plan.patience)
            local.pause()
            readings = rounds(plan, _turns(plan, loader, Seat(local)), say)
            local.stop()  # its memory is the server's from here on
            return readings, _busy(loader, ingester, plan, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _turns(plan: Plan, loader: Child, local: Seat) -> dict[str, Callable[[], Facts]]:
    def remote(**how: Any) -> Callable[[], Facts]:
        return lambda: loader.ask("search", seconds=plan.seconds, **how)

    turns: dict[str, Callable[[], Facts]] = {
        "in process, items": lambda: local.take("items_batch", seconds=plan.seconds),
        "in process, ids": lambda: local.take("bare_batch", seconds=plan.seconds),
    }
    for callers in BATCH_CALLERS:
        turns[f"batches, items, {callers} callers"] = remote(size=plan.batch, callers=callers)
        turns[f"batches, ids, {callers} callers"] = remote(size=plan.batch, callers=callers, ids_only=True)
    for callers in CALLERS:
        turns[f"single, {callers} callers"] = remote(size=1, callers=callers)
    return turns


def _busy(loader: Child, ingester: Child, plan: Plan, say: Say) -> dict[str, Facts]:
    """Search in slices while the server ingests into the same collection, and then while it builds an index anew."""
    count = min(plan.n, INGESTED)
    say(f"ingesting {count} items over gRPC, alone")
    ingester.ask("create", collection="alone")
    ingester.ask("serialise", collection="alone", prefix="", count=count)
    found: dict[str, Facts] = {"ingest alone": ingester.ask("ingest")}
    say("searching while ingesting")
    ingester.ask("serialise", collection=NAME, prefix="new-", count=count)
    with ThreadPoolExecutor(1) as aside:
        ingesting = aside.submit(ingester.ask, "ingest")
        slices = _slices(loader, ingesting.done)
        found["ingest beside searches"] = ingesting.result()
    found["while ingesting"] = _pooled(slices)
    say("searching while building")
    _wait(ingester, _settled, SETTLE_S)  # builds that the ingestion set off, of which one follows the other
    state = ingester.ask("state", collection=NAME)
    lists = lists_for(plan.n)
    wanted = next(f for f in (f"IVF{lists},Flat", f"IVF{lists // 2},Flat") if f != state.get("index"))
    answer = ingester.ask("update", collection=NAME, index=wanted)
    if "refused" not in answer and _wait(ingester, _building, BEGIN_S):
        started = time.monotonic()
        found["while building"] = _pooled(
            _slices(loader, lambda: not _building(ingester.ask("state", collection=NAME)))
        )
        found["while building"] |= {"seconds": time.monotonic() - started, "index": wanted}
    else:
        why = answer.get("refused", f"none began within {BEGIN_S:.0f} s")
        say(f"searching while building is not measured: {why}")
    return found


def _building(collection: Facts) -> bool:
    return bool(collection.get("index_state", {}).get("building"))


def _settled(collection: Facts) -> bool:
    """Whether nothing is being built, and so few rows are outside of segments that nothing will be."""
    return not _building(collection) and int(collection.get("index_state", {}).get("delta", 0)) <= SEAL


def _wait(child: Child, until: Callable[[Facts], bool], patience: float) -> bool:
    """Ask for the collection's state until it is as wanted; return whether it came to that."""
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if until(child.ask("state", collection=NAME)):
            return True
        time.sleep(0.05)
    return False


def _slices(loader: Child, over: Callable[[], bool]) -> list[tuple[int, Facts]]:
    """Search in slices, one number of callers after the other, until `over`; each got one, all fell within."""
    slices: list[tuple[int, Facts]] = []
    for callers in _alternately():
        reading = loader.ask("search", size=1, callers=callers, seconds=SLICE_S)
        ended = over()
        if not ended or len(slices) < len(CALLERS):
            slices.append((callers, reading))
        if ended and len(slices) >= len(CALLERS):
            return slices
    return slices


def _alternately() -> Iterator[int]:
    while True:
        yield from CALLERS


def _pooled(slices: list[tuple[int, Facts]]) -> Facts:
    return {str(callers): pooled([r for c, r in slices if c == callers]) for callers in CALLERS}


def pooled(readings: list[Facts]) -> Facts:
    """Return percentiles over the calls of several readings together."""
    latencies = [each for reading in readings for each in reading["latencies"]]
    return {
        "calls": len(latencies),
        "readings": len(readings),
        "p50_ms": percentile_ms(latencies, 50),
        "p99_ms": percentile_ms(latencies, 99),
    }
