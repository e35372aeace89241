"""A budget of encoded bytes and images, over all callers: what is over it is told to come back later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from likewise_server.errors import OutOfRange, ResourceExhausted


class Admission:
    """Counts what is between arrival and reply. Lives on the event loop, so it needs no lock."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.items = 0
        self.bytes = 0
        self._freed = asyncio.Condition()
        self._images_per_s = 50.0  # a moving estimate, for the time to retry
        self._last_release = time.monotonic()

    @asynccontextmanager
    async def admit(self, items: int, size: int, *, wait: bool) -> AsyncIterator[None]:
        """Hold `items` images of `size` bytes in all while the block runs.

        With `wait`, as streams do, wait for room; else raise ResourceExhausted with a time to retry.
        Raises OutOfRange for what would not fit an idle server.
        """
        if items > self._max_items or size > self._max_bytes:
            raise OutOfRange(
                f"{items} images of {size} bytes at once are over what this server queues "
                f"({self._max_items} images, {self._max_bytes} bytes): send fewer per request"
            )
        if wait:
            async with self._freed:
                await self._freed.wait_for(lambda: self._fits(items, size))
        elif not self._fits(items, size):
            delay = min(max(self.items / self._images_per_s, 0.1), 30.0)
            raise ResourceExhausted(
                f"{self.items} images are queued already: retry after {delay:.1f} s", retry_after_s=delay
            )
        self.items += items
        self.bytes += size
        try:
            yield
        finally:
            self.items -= items
            self.bytes -= size
            self._learn_rate(items)
            async with self._freed:
                self._freed.notify_all()

    def _learn_rate(self, items: int) -> None:
        now = time.monotonic()
        rate = items / max(now - self._last_release, 1e-3)
        self._images_per_s = max(0.9 * self._images_per_s + 0.1 * rate, 0.1)
        self._last_release = now

    def _fits(self, items: int, size: int) -> bool:
        return self.items + items <= self._max_items and self.bytes + size <= self._max_bytes
