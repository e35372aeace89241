"""A budget of encoded bytes and images, over all callers: what is over it is told to come back later."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from likewise_server.errors import OutOfRange, ResourceExhausted


@dataclass(slots=True)
class _Waiting:
    items: int
    size: int
    admitted: asyncio.Future[None]


class Admission:
    """Counts what is between arrival and reply. Lives on the event loop and awaits nothing while it counts."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.items = 0
        self.bytes = 0
        self._queue: deque[_Waiting] = deque()
        self._images_per_s = 50.0  # a moving estimate, for the time to retry
        self._last_release = time.monotonic()

    @asynccontextmanager
    async def admit(self, items: int, size: int, *, wait: bool) -> AsyncIterator[None]:
        """Hold `items` images of `size` bytes in all while the block runs.

        With `wait`, as streams do, wait in line for room; else raise ResourceExhausted with a time to
        retry. Raises OutOfRange for what would not fit an idle server.
        """
        if items > self._max_items or size > self._max_bytes:
            raise OutOfRange(
                f"{items} images of {size} bytes at once are over what this server queues "
                f"({self._max_items} images, {self._max_bytes} bytes): send fewer per request"
            )
        if not self._queue and self._fits(items, size):
            self._take(items, size)
        elif wait:
            await self._wait(items, size)
        else:
            delay = min(max(self.items / self._images_per_s, 0.1), 30.0)
            raise ResourceExhausted(
                f"{self.items} images are queued already: retry after {delay:.1f} s", retry_after_s=delay
            )
        try:
            yield
        finally:
            self._learn_rate(items)
            self._release(items, size)

    async def _wait(self, items: int, size: int) -> None:
        place = _Waiting(items, size, asyncio.get_running_loop().create_future())
        self._queue.append(place)
        try:
            await place.admitted
        except asyncio.CancelledError:
            if place in self._queue:
                self._queue.remove(place)
                self._admit_next()
            elif not place.admitted.cancelled():  # admitted in the very moment of giving up
                self._release(items, size)
            raise

    def _take(self, items: int, size: int) -> None:
        self.items += items
        self.bytes += size

    def _release(self, items: int, size: int) -> None:
        self.items -= items
        self.bytes -= size
        self._admit_next()

    def _admit_next(self) -> None:
        """Let in, in their order, those in line that fit now."""
        while self._queue and self._fits(self._queue[0].items, self._queue[0].size):
            place = self._queue.popleft()
            if not place.admitted.cancelled():
                self._take(place.items, place.size)
                place.admitted.set_result(None)

    def _learn_rate(self, items: int) -> None:
        now = time.monotonic()
        rate = items / max(now - self._last_release, 1e-3)
        self._images_per_s = max(0.9 * self._images_per_s + 0.1 * rate, 0.1)
        self._last_release = now

    def _fits(self, items: int, size: int) -> bool:
        return self.items + items <= self._max_items and self.bytes + size <= self._max_bytes
