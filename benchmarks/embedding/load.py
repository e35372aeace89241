"""Load on the server: closed-loop clients, one bulk stream, and the client library."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from common.wire import channels as connections
from embedding import wire
from embedding.images import Photographs, tagged
from embedding.readings import Reading, clocked
from likewise import AsyncClient
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb

PER_CONNECTION = 8  # clients that share one
KEPT = 8  # every so many replies of unary calls, one is kept and checked after the clock
MOST_IN_LIST = 4096  # images that the library gets in one list, which stands in memory


class Load:
    """Measures one server. Each call of `closed`, `bulk` and `library` is one measurement."""

    def __init__(self, address: str, photographs: Photographs) -> None:
        self._address = address
        self._images = photographs.data
        self._requests = wire.Requests(photographs.data)

    def closed(self, images: int, clients: int) -> Reading:
        """Unary calls of one image from clients that each wait for the answer before they ask again."""
        return asyncio.run(self._closed(images, clients))

    def bulk(self, images: int, a_message: int = 1) -> Reading:
        """One EmbedStream, as fast as the server reads, of so many images a message."""
        return asyncio.run(self._bulk(images // a_message, a_message))

    def library(self, images: int) -> Reading:
        """One call of the client library's `embed` with a list."""
        return asyncio.run(self._library(min(images, MOST_IN_LIST)))

    def vector(self, number: int) -> NDArray[np.float32]:
        """Return the server's vector of one image, to hold against the one computed without it."""
        return asyncio.run(self._vector(number))

    async def _closed(self, images: int, clients: int) -> Reading:
        left = iter(range(images))
        kept: list[bytes] = []
        async with connections(self._address, -(-clients // PER_CONNECTION)) as channels:
            calls = [wire.unary(channel) for channel in channels]
            with clocked(images) as reading:

                async def client(number: int) -> None:
                    call = calls[number % len(calls)]
                    for turn in left:
                        started = time.perf_counter()
                        reply = await call(self._requests.unary())
                        reading.latencies.append(time.perf_counter() - started)
                        if turn % KEPT == 0:
                            kept.append(reply)

                await asyncio.gather(*map(client, range(clients)))
        wire.check_unary(kept)
        return reading

    async def _bulk(self, messages: int, a_message: int) -> Reading:
        async def requests() -> AsyncIterator[bytes]:
            for item_id in range(messages):
                yield self._requests.stream(item_id, a_message)

        async with connections(self._address, 1) as (channel,):
            with clocked(messages * a_message) as reading:
                replies = [reply async for reply in wire.stream(channel)(requests())]
        wire.check_stream(replies, set(range(messages)), a_message)
        return reading

    async def _library(self, images: int) -> Reading:
        turn = itertools.cycle(self._images)
        listed = [tagged(next(turn)) for _ in range(images)]
        async with AsyncClient(self._address) as lw:
            await lw.info()
            with clocked(images) as reading:
                result = await lw.embed(listed, progress=False)
        if result.errors:
            raise RuntimeError(f"{len(result.errors)} images failed: {next(iter(result.errors.values()))}")
        return reading

    async def _vector(self, number: int) -> NDArray[np.float32]:
        data = tagged(self._images[number % len(self._images)])
        message = epb.EmbedRequest(images=[pb.Image(data=data)]).SerializeToString()
        async with connections(self._address, 1) as (channel,):
            reply = epb.EmbedResponse.FromString(await wire.unary(channel)(message))
        return wire.row(reply.vectors)
