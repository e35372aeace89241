"""Several clients, a server that is killed under them again and again, and looks at what is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.processes import PROC, rss_bytes
from common.server import LikewiseServer
from likewise import AsyncClient
from likewise.collection import AsyncCollection
from likewise.errors import LikewiseError
from soaking.model import DIM, UNKNOWN, Float32, Model, Stored, vector_of, wrong_hits
from soaking.worker import IDS, LABELS, PICTURES, Known, Worker, alike

MIB = 2**20
CLIENTS = 4
QUERIES = 25  # of each comparison with brute force
LIFE_S = (4.0, 12.0)  # between two ends of the server
POLITELY = 0.2  # the share of the ends that are SIGTERM; the rest is SIGKILL
STEADY = 1 / 3  # the share of the time, at the end, in which the server lives on and its memory is watched
WARM_UP = 1 / 4  # the share of that in which memory may still grow
EVERY_S = 1.0  # between two readings
GROWTH, MORE_HANDLES = 1.15, 16  # more is no longer flat


class Victim:
    """The server: one data directory and one address, one process after the other."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self._folder, self._weights = folder, weights
        self._options = ["--compile", "off", "--set", "grace_s=10"]
        self.starts_s: list[float] = []
        self.kills = self.terminations = 0
        self.server = self._start()
        self.address = self.server.address
        self._options += ["--port", self.address.rpartition(":")[2]]

    def _start(self) -> LikewiseServer:
        life = self._folder / f"life-{len(self.starts_s)}"
        life.mkdir()
        began = time.monotonic()
        server = LikewiseServer(
            "likewise-tiny", self._weights, "fp32", life, data=self._folder / "data", options=self._options
        )
        self.starts_s.append(time.monotonic() - began)
        return server

    def end(self, *, politely: bool) -> str:
        """End the server and start it again; return what was wrong with its end."""
        process = self.server.child.process
        process.send_signal(signal.SIGTERM if politely else signal.SIGKILL)
        status = process.wait(60)
        self.terminations += politely
        self.kills += not politely
        words = self.server.child.log_end()
        self.server.child.stop()
        self.server = self._start()
        return f"SIGTERM gave status {status}: {words}" if politely and status else ""

    def readings(self) -> tuple[float, int]:
        """Return the resident memory in MiB and the number of open file handles."""
        return rss_bytes(self.server.pid) / MIB, len(os.listdir(PROC / str(self.server.pid) / "fd"))  # noqa: PTH208


@dataclass(slots=True)
class Soak:
    """One run: who takes part, and what was found."""

    victim: Victim
    known: Known
    go: asyncio.Event
    workers: list[Worker]
    client: AsyncClient
    random: random.Random
    found: dict[str, list[str]] = field(default_factory=lambda: {"lost": [], "resurrected": [], "changed": []})
    wrong: list[str] = field(default_factory=list)
    checks: int = 0
    searches: int = 0
    rss: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    async def run(self, minutes: float) -> None:
        """Kill and look, then let live and watch, then look once more."""
        kills_end = time.monotonic() + minutes * 60 * (1 - STEADY)
        while time.monotonic() < kills_end:
            self.go.set()
            await asyncio.sleep(self.random.uniform(*LIFE_S))
            complaint = await asyncio.to_thread(self.victim.end, politely=self.random.random() < POLITELY)
            self.wrong += [complaint] if complaint else []
            await self.check()
        self.go.set()
        steady = minutes * 60 * STEADY
        ends = time.monotonic() + steady
        await asyncio.sleep(steady * WARM_UP)
        while not self.rss or time.monotonic() < ends:
            rss, handles = self.victim.readings()
            self.rss.append(rss)
            self.handles.append(handles)
            await asyncio.sleep(EVERY_S)
        await self.check()

    async def check(self) -> None:
        """Stop all clients, and compare everything with what they know."""
        self.go.clear()
        for worker in self.workers:
            await worker.idle.wait()
        self.checks += 1
        try:
            await self._compare()
        except LikewiseError as error:
            self.wrong.append(f"check: {error!r}")
        total = self.known.done.total()
        print(f"{self.checks:4d} checks  {total:7d} operations  {self.victim.kills:3d} kills", file=sys.stderr)

    async def _compare(self) -> None:
        points, pictures = await self.client.collection("points"), await self.client.collection("pictures")
        rows = await self._settled(points, self.known.points, exact=True)
        await self._settled(pictures, self.known.pictures, exact=False)
        await self._searches(points, rows)
        await self._heads(points)
        there = {info.name for info in await self.client.collections()}
        for name, states in self.known.scratch.items():
            if (name in there) not in states:
                self.found["lost" if True in states else "resurrected"].append(f"collection {name}")
            self.known.scratch[name] = {name in there}
        for collection in (points, pictures):
            self.wrong += [f"check: {problem}" for problem in (await collection.check()).problems]

    async def _settled(self, collection: AsyncCollection, model: Model, *, exact: bool) -> dict[str, Any]:
        """Return the items by id, after comparing them with the model."""
        items = {item.id: item async for item in collection.items(vectors=True)}
        found: dict[str, Stored] = {}
        for item in items.values():
            found[item.id] = Stored(self._number(item.vector, model, item.id, exact=exact), item.label)
        for kind, which in model.settle(found).items():
            self.found[kind] += which
        if await collection.count() != len(items):
            self.wrong.append(f"count: {await collection.count()} of {collection.name}, which lists {len(items)}")
        return items

    def _number(self, vector: Float32 | None, model: Model, item_id: str, *, exact: bool) -> int:
        """Return which of the vectors that an item may have it has, UNKNOWN for another one."""
        for number in model.numbers(item_id):
            expected = vector_of(number) if exact else self.known.vectors[number]
            if vector is not None and (
                np.array_equal(vector, expected) if exact else alike(vector[np.newaxis], expected[np.newaxis])
            ):
                return number
        return UNKNOWN

    async def _searches(self, points: AsyncCollection, items: dict[str, Any]) -> None:
        for where in ("", *(f"label = '{label}'" for label in LABELS)):
            ids = [i for i, item in items.items() if not where or where == f"label = '{item.label}'"]
            rows = np.stack([items[item_id].vector for item_id in ids]) if ids else np.empty((0, DIM), np.float32)
            queries = np.stack([vector_of(self.random.getrandbits(32)) for _ in range(QUERIES)])
            for query, hits in zip(queries, await points.search_many(vectors=queries, k=10, where=where), strict=True):
                self.searches += 1
                complaint = str(hits.error) if hits.error else wrong_hits(hits, ids, rows, query, 10)
                self.wrong += [f"search {where!r}: {complaint}"] if complaint else []

    async def _heads(self, points: AsyncCollection) -> None:
        there = {(head.name, head.version) for head in await points.heads()}
        for name, versions in self.known.heads.items():
            for version, exists in versions.items():
                if exists != ((name, version) in there):
                    self.found["lost" if exists else "resurrected"].append(f"head {name} {version}")

    def facts(self) -> dict[str, Any]:
        """Return the outcome."""
        third = max(1, len(self.rss) // 3)
        first, last = (statistics.median(part) for part in (self.rss[:third], self.rss[-third:]))
        handles = (statistics.median(self.handles[:third]), statistics.median(self.handles[-third:]))
        wrong = [*self.wrong, *self.known.wrong]
        flat = last <= first * GROWTH and handles[1] <= handles[0] + MORE_HANDLES
        return {
            "operations": dict(self.known.done),
            "operations_total": self.known.done.total(),
            "unanswered": self.known.unanswered.total(),
            "kills": self.victim.kills,
            "terminations": self.victim.terminations,
            "checks": self.checks,
            "searches_compared": self.searches,
            **{kind: len(which) for kind, which in self.found.items()},
            "wrong": len(wrong),
            "complaints": [*(words for which in self.found.values() for words in which), *wrong][:50],
            "start_s": {"median": statistics.median(self.victim.starts_s), "max": max(self.victim.starts_s)},
            "rss_mib": {"first": first, "last": last, "readings": [round(rss, 1) for rss in self.rss]},
            "file_handles": {"first": handles[0], "last": handles[1], "max": max(self.handles)},
            "flat": flat,
            "passed": flat and not wrong and not any(self.found.values()),
        }


@asynccontextmanager
async def _clients(address: str, known: Known, seed: int) -> AsyncIterator[tuple[asyncio.Event, list[Worker]]]:
    go = asyncio.Event()
    workers = [Worker(number, address, known, go, seed) for number in range(CLIENTS)]
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield go, workers
        for task in tasks:
            if task.done():
                task.result()  # one that broke has proved nothing
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def soak(victim: Victim, images: list[bytes], minutes: float, seed: int) -> dict[str, Any]:
    """Run for so many minutes; return what happened, with `passed`."""
    chance = random.Random(seed)
    async with AsyncClient(victim.address) as client:
        images = images[:PICTURES]
        known = Known(images, (await client.embed(images, progress=False)).vectors)
        points = await client.create_collection("points", dim=DIM)
        await client.create_collection("pictures", "likewise-tiny")
        for number in range(CLIENTS):
            first = {f"w{number}-{n}": Stored(chance.getrandbits(32), LABELS[n % 3]) for n in range(IDS // 2)}
            vectors = np.stack([vector_of(state.number) for state in first.values()])
            labels = [state.label for state in first.values()]
            known.points.begin(first)
            await points.add_vectors([*first], vectors, labels=labels, progress=False)
            known.points.acknowledge(first)
        async with _clients(victim.address, known, seed) as (go, workers):
            run = Soak(victim, known, go, workers, client, chance)
            await run.run(minutes)
    return run.facts()
