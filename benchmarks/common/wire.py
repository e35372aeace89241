"""Connections of their own for raw calls: bytes in, bytes out, so that generating load leaves the cores to a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open `count` connections, ready for use."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    opened = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1), *unlimited])
        for _ in range(count)
    ]
    try:
        for channel in opened:
            await channel.channel_ready()
        yield opened
    finally:
        for channel in opened:
            await channel.close()
