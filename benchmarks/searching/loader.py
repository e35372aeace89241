"""Load over gRPC: searches from callers in a closed loop, and ingestion. A worker.

python -m searching.loader PLAN_JSON ADDRESS

Stubs are raw and requests serialised before the clock: what this process takes, the server lacks.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from common.answering import Answers
from common.wire import channels
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from searching.data import Dataset
from searching.filters import label_of
from searching.plan import Plan

SERVICE = "/likewise.v1.CollectionService"
NAME = "bench"
PER_CONNECTION = 4  # callers that share one
ITEMS = 500  # of one UpsertItems message: a megabyte
AHEAD = 8  # messages sent before their replies


def main() -> None:
    """Answer requests for load."""
    answers = Answers()
    load = Load(Dataset(Plan.parse(sys.argv[1])), sys.argv[2])
    names = ("search", "serialise", "ingest", "create", "update", "state")
    answers.serve({name: getattr(load, name) for name in names}, {})


class Load:
    """What can be asked of one server."""

    def __init__(self, data: Dataset, address: str) -> None:
        self._data, self._address = data, address
        self._requests = lru_cache(self._serialised)
        self._messages: list[bytes] = []
        self._count = 0

    def search(self, **how: Any) -> dict[str, Any]:
        """Search from so many callers, each waiting for its answer; return the rate and every call's seconds."""
        return asyncio.run(self._search(**how))

    def serialise(self, collection: str, prefix: str, count: int) -> dict[str, Any]:
        """Make the messages of the next ingestion: so many rows under new ids."""
        self._messages, self._count = self._upserts(collection, prefix, count), count
        return {}

    def ingest(self) -> dict[str, Any]:
        """Upsert what was made on one stream, as fast as the server takes it."""
        return asyncio.run(self._ingest(self._messages, self._count))

    def create(self, collection: str) -> dict[str, Any]:
        """Make a collection for vectors from elsewhere."""
        request = cpb.CreateCollectionRequest(name=collection, dim=self._data.dim, indexed_attributes=["bucket"])
        return asyncio.run(self._call("CreateCollection", request, cpb.CreateCollectionResponse))

    def update(self, collection: str, index: str) -> dict[str, Any]:
        """Ask for another index, which is built behind the searches; `refused` says why there will be none."""
        request = cpb.UpdateCollectionRequest(name=collection, index=index)
        try:
            return asyncio.run(self._call("UpdateCollection", request, cpb.UpdateCollectionResponse))
        except grpc.aio.AioRpcError as error:
            return {"refused": error.details()}

    def state(self, collection: str) -> dict[str, Any]:
        """Return the collection's message."""
        request = cpb.GetCollectionRequest(name=collection)
        reply: dict[str, Any] = asyncio.run(self._call("GetCollection", request, cpb.GetCollectionResponse))
        return dict(reply["collection"])

    async def _call(self, method: str, request: Any, reply: Any) -> dict[str, Any]:
        async with channels(self._address, 1) as (channel,):
            raw: bytes = await channel.unary_unary(f"{SERVICE}/{method}")(request.SerializeToString())
        return MessageToDict(reply.FromString(raw), preserving_proto_field_name=True)

    async def _search(self, *, size: int, callers: int, seconds: float, ids_only: bool = False) -> dict[str, Any]:
        requests = self._requests(size, ids_only)
        latencies: list[float] = []
        replies: dict[int, bytes] = {}
        async with channels(self._address, -(-callers // PER_CONNECTION)) as opened:
            calls: list[Any] = [channel.unary_unary(f"{SERVICE}/Search") for channel in opened]
            await asyncio.gather(*(call(requests[0]) for call in calls))
            cpu, started = time.process_time(), time.perf_counter()
            ends = started + seconds

            async def caller(number: int) -> None:
                call, turn = calls[number % len(calls)], number * 7  # not all the same queries at once
                while time.perf_counter() < ends:
                    before = time.perf_counter()
                    replies[number] = await call(requests[turn % len(requests)])
                    latencies.append(time.perf_counter() - before)
                    turn += 1

            await asyncio.gather(*map(caller, range(callers)))
            elapsed = time.perf_counter() - started
            used = (time.process_time() - cpu) / elapsed
        for raw in replies.values():
            _check(raw, size, self._data.plan.k)
        rate = len(latencies) * size / elapsed
        return {"queries_per_s": rate, "generator_cpu": used, "latencies": [round(each, 6) for each in latencies]}

    async def _ingest(self, messages: list[bytes], count: int) -> dict[str, Any]:
        room = asyncio.Semaphore(AHEAD)

        async def sent() -> AsyncIterator[bytes]:
            for message in messages:
                await room.acquire()
                yield message

        async with channels(self._address, 1) as (channel,):
            upsert: Any = channel.stream_stream(f"{SERVICE}/UpsertItems")
            started = time.perf_counter()
            stored = 0
            async for raw in upsert(sent()):
                room.release()
                results = cpb.UpsertItemsResponse.FromString(raw).results
                stored += sum(result.outcome == cpb.OUTCOME_CREATED for result in results)
            seconds = time.perf_counter() - started
        if stored != count:
            raise RuntimeError(f"{stored} of {count} items were stored")
        return {"items": count, "seconds": seconds, "items_per_s": count / seconds}

    def _serialised(self, size: int, ids_only: bool) -> list[bytes]:
        queries = self._data.queries[self._data.half :]
        pieces = [queries[at : at + size] for at in range(0, len(queries) - size + 1, size)]
        return [
            cpb.SearchRequest(
                collection=NAME,
                vectors=pb.Matrix(data=piece.tobytes(), dtype=pb.DTYPE_FLOAT32, rows=size, cols=self._data.dim),
                k=self._data.plan.k,
                ids_only=ids_only,
            ).SerializeToString()
            for piece in pieces
        ]

    def _upserts(self, collection: str, prefix: str, count: int) -> list[bytes]:
        made = []
        for first in range(0, count, ITEMS):
            request = cpb.UpsertItemsRequest(collection=collection)
            for number, row in enumerate(self._data.rows(first, min(first + ITEMS, count)), start=first):
                item = request.items.add(vector=row.tobytes())
                item.info.id, item.info.label = f"{prefix}{number}", label_of(int(self._data.label[number]))
                item.info.attributes["bucket"] = int(self._data.bucket[number])
            made.append(request.SerializeToString())
        return made


def _check(raw: bytes, size: int, k: int) -> None:
    """Raise RuntimeError unless a reply has all hits of all queries."""
    results = cpb.SearchResponse.FromString(raw).results
    for result in results:
        if result.HasField("error"):
            raise RuntimeError(f"a query failed: {result.error.message}")
    hits = [max(len(result.hits), len(result.ids)) for result in results]
    if hits != [k] * size:
        raise RuntimeError(f"{size} queries for {k} hits each were answered with {hits}")


if __name__ == "__main__":
    main()
