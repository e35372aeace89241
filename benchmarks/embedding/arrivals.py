"""Open loop: calls arrive when chance says, whether or not the server keeps up.

A call's time runs from when it should have been sent, so that a generator or a server that stalls cannot hide the
calls that waited for it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from common.figures import percentile_ms
from common.wire import channels as connections
from embedding import wire
from embedding.images import Photographs
from embedding.load import KEPT

DEADLINE_S = 5.0
CONNECTIONS = 4
SEED = 20


@dataclass(slots=True)
class OpenReading:
    """What became of the calls of one open loop; times in milliseconds."""

    load: float  # offered, in parts of the capacity
    offered_per_s: float
    offered: int
    goodput_per_s: float  # answered with a vector while the loop lasted
    accepted: int
    accepted_p50_ms: float | None
    accepted_p99_ms: float | None
    rejected: int  # RESOURCE_EXHAUSTED
    rejected_p99_ms: float | None
    rejected_max_ms: float | None
    rejected_from_sent_p99_ms: float | None  # without the generator's own lateness
    expired: int  # DEADLINE_EXCEEDED
    other: int
    generator_late_p99_ms: float | None  # how late the generator itself sent; part of the times above

    def facts(self) -> dict[str, Any]:
        """Return what goes into the report."""
        return asdict(self)


@dataclass(slots=True)
class _Fates:
    """Each call's seconds from when it should have been sent, by what became of it."""

    accepted: list[float] = field(default_factory=list)
    finished_at: list[float] = field(default_factory=list)  # of the accepted, seconds from the start of the loop
    rejected: list[float] = field(default_factory=list)
    rejected_from_sent: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    expired: int = 0
    other: int = 0


def open_loop(address: str, photographs: Photographs, *, capacity: float, load: float, seconds: float) -> OpenReading:
    """Offer `load` times `capacity` calls a second, at Poisson's times, and return what became of them."""
    due = _arrivals(capacity * load, seconds)
    fates = asyncio.run(_offer(address, photographs, due))
    wire.check_unary(fates.kept)
    return OpenReading(
        load=load,
        offered_per_s=len(due) / seconds,
        offered=len(due),
        goodput_per_s=sum(at <= seconds for at in fates.finished_at) / seconds,
        accepted=len(fates.accepted),
        accepted_p50_ms=percentile_ms(fates.accepted, 50),
        accepted_p99_ms=percentile_ms(fates.accepted, 99),
        rejected=len(fates.rejected),
        rejected_p99_ms=percentile_ms(fates.rejected, 99),
        rejected_max_ms=percentile_ms(fates.rejected, 100),
        rejected_from_sent_p99_ms=percentile_ms(fates.rejected_from_sent, 99),
        expired=fates.expired,
        other=fates.other,
        generator_late_p99_ms=percentile_ms(fates.late, 99),
    )


def _arrivals(per_second: float, seconds: float) -> list[float]:
    """Return the times of a Poisson process, in seconds from its start."""
    rng = random.Random(SEED)
    times = []
    at = rng.expovariate(per_second)
    while at < seconds:
        times.append(at)
        at += rng.expovariate(per_second)
    return times


async def _offer(address: str, photographs: Photographs, due: list[float]) -> _Fates:
    requests = wire.Requests(photographs.data)
    fates = _Fates()
    async with connections(address, CONNECTIONS) as channels:
        calls = [wire.unary(channel) for channel in channels]
        start = time.perf_counter()

        async def one(number: int, at: float) -> None:
            sent = time.perf_counter() - start
            fates.late.append(sent - at)
            try:
                reply = await calls[number % CONNECTIONS](requests.unary(), timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                now = time.perf_counter() - start
                _count(fates, error, now - at, now - sent)
                return
            now = time.perf_counter() - start
            fates.accepted.append(now - at)
            fates.finished_at.append(now)
            if number % KEPT == 0:
                fates.kept.append(reply)

        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(due):
                await asyncio.sleep(max(start + at - time.perf_counter(), 0))
                group.create_task(one(number, at))
    return fates


def _count(fates: _Fates, error: grpc.aio.AioRpcError, from_due: float, from_sent: float) -> None:
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        fates.rejected.append(from_due)
        fates.rejected_from_sent.append(from_sent)
    elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        fates.expired += 1
    else:
        fates.other += 1
