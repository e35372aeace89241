"""Many items in: cut into messages that fit the server's limits, a bounded number of them in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from likewise.results import Limits

T = TypeVar("T")
R = TypeVar("R")

# Enough to fill a batch on the server; more per message only delays the first answer.
CHUNK_ITEMS = 32
CHUNK_BYTES = 8 * 2**20


async def cut(
    items: AsyncIterable[T], size: Callable[[T], int], limits: Limits, *, most: int = CHUNK_ITEMS
) -> AsyncIterator[list[T]]:
    """Yield lists of at most `most` items that fit one message each; an item that fits none travels alone."""
    most_items = max(1, min(most, limits.max_items))
    most_bytes = min(CHUNK_BYTES, limits.max_message_bytes // 2)
    chunk: list[T] = []
    total = 0
    async for item in items:
        weight = size(item)
        if chunk and (len(chunk) >= most_items or total + weight > most_bytes):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += weight
    if chunk:
        yield chunk


async def in_flight(
    chunks: AsyncIterable[T],
    work: Callable[[T], Awaitable[R]],
    window: int,
    clash: Callable[[T, T], bool] = lambda _earlier, _later: False,
) -> AsyncIterator[tuple[T, R]]:
    """Yield (chunk, work(chunk)) in the order of the chunks, at most `window` of them under way.

    A chunk that clashes with an earlier one waits until that is done.
    """
    pending: list[tuple[T, asyncio.Future[R]]] = []
    try:
        async for chunk in chunks:
            while any(clash(earlier, chunk) for earlier, _ in pending):
                first, task = pending.pop(0)
                yield first, await task
            pending.append((chunk, asyncio.ensure_future(work(chunk))))
            if len(pending) >= window:
                first, task = pending.pop(0)
                yield first, await task
        while pending:
            first, task = pending.pop(0)
            yield first, await task
    finally:
        for _, task in pending:
            task.cancel()
        for _, task in pending:
            with suppress(asyncio.CancelledError, Exception):
                await task


async def prepared(items: Iterable[T] | AsyncIterable[T], prepare: Callable[[T], R]) -> AsyncIterator[R]:
    """Yield prepare(item) for each item, computed off the event loop (it reads files, encodes pictures)."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield await asyncio.to_thread(prepare, item)
        return
    iterator = iter(items)
    while (ready := await asyncio.to_thread(_take, iterator, prepare)) is not None:
        for result in ready:
            yield result


def _take(iterator: Iterator[T], prepare: Callable[[T], R], count: int = 8) -> list[R] | None:
    """Prepare a few at a time: a hop to another thread for each would cost more than most images."""
    taken = [prepare(item) for _, item in zip(range(count), iterator, strict=False)]
    return taken or None
