"""Streams with a bounded number of requests in flight: reading stops until replies are taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")

_END = object()
SHUTTING_DOWN = "the server is shutting down: what was answered is done, send the rest again in a moment"


async def until(requests: AsyncIterator[Request], draining: asyncio.Event) -> AsyncIterator[Request]:
    """Yield the requests until the caller ends or `draining` is set, whichever comes first."""
    coming: asyncio.Queue[object] = asyncio.Queue(1)

    async def read() -> None:
        try:
            async for request in requests:
                await coming.put(request)
        except Exception as error:  # noqa: BLE001  # raised again below
            await coming.put(_Failure(error))
        else:
            await coming.put(_END)

    async def stop() -> None:
        await draining.wait()
        reader.cancel()
        while not coming.empty():
            coming.get_nowait()
        coming.put_nowait(_END)

    reader, stopper = asyncio.create_task(read()), asyncio.create_task(stop())
    try:
        while (request := await coming.get()) is not _END:
            if isinstance(request, _Failure):
                raise request.error
            yield request  # type: ignore[misc]  # the queue holds requests, failures and the end mark
    finally:
        for task in (reader, stopper):
            task.cancel()
        await asyncio.gather(reader, stopper, return_exceptions=True)


async def as_ready(
    requests: AsyncIterator[Request],
    handle: Callable[[Request], Awaitable[Reply]],
    window: int,
    weigh: Callable[[Request], int],
    most: int,
) -> AsyncIterator[Reply]:
    """Yield handle(request) for each request as each is done, at most `window` at once.

    Requests under way weigh `most` together, or there is only one.
    """
    room = asyncio.Semaphore(window)
    done: asyncio.Queue[object] = asyncio.Queue()
    held, lighter = 0, asyncio.Event()

    async def one(request: Request, weight: int) -> None:
        nonlocal held
        try:
            done.put_nowait(await handle(request))
        except Exception as error:  # noqa: BLE001  # raised again in the reader below
            done.put_nowait(_Failure(error))
        held -= weight
        lighter.set()

    async def read(group: asyncio.TaskGroup) -> None:
        nonlocal held
        async for request in requests:
            await room.acquire()
            weight = weigh(request)
            while held and held + weight > most:
                lighter.clear()
                await lighter.wait()
            held += weight
            group.create_task(one(request, weight))

    async def read_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await read(group)
        except Exception as error:  # noqa: BLE001  # raised again in the reader below
            done.put_nowait(_Failure(error))
        done.put_nowait(_END)

    reader = asyncio.create_task(read_all())
    try:
        while (reply := await done.get()) is not _END:
            if isinstance(reply, _Failure):
                raise reply.error
            yield reply  # type: ignore[misc]  # the queue holds replies, failures and the end mark
            room.release()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def in_order(
    requests: AsyncIterator[Request], handle: Callable[[Request], Awaitable[Reply]], window: int
) -> AsyncIterator[Reply]:
    """Yield handle(request) for each request in their order, at most `window` at once."""
    tasks: asyncio.Queue[asyncio.Task[Reply] | None] = asyncio.Queue()
    room = asyncio.Semaphore(window)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                tasks.put_nowait(asyncio.ensure_future(handle(request)))
        finally:
            tasks.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await tasks.get()) is not None:
            yield await task
            room.release()
        await reader  # what reading raised is the stream's error
    finally:
        reader.cancel()
        left: list[asyncio.Task[Any]] = [reader]
        while not tasks.empty():
            task = tasks.get_nowait()
            if task is not None:
                task.cancel()
                left.append(task)
        await asyncio.gather(*left, return_exceptions=True)


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error
