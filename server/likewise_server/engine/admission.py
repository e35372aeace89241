"""A budget over all callers: what is over it is told at once to come back later, so that the rest is quick.

Everything between arrival and reply counts, by images, encoded bytes and pixels. Interactive images
have a smaller budget of their own, the one that keeps latency flat when more arrives than can be done:
as many as the server gets through in `wait_s` seconds, as measured, and never fewer than `least`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from likewise_server.errors import OutOfRange, ResourceExhausted

WINDOW_S = 0.25  # of busy time, over which a rate is measured


@dataclass(slots=True)
class Cost:
    """What images weigh: how many, and their encoded bytes and pixels in all."""

    items: int = 0
    bytes: int = 0
    pixels: int = 0

    def plus(self, other: Cost) -> Cost:
        """Return the sum."""
        return Cost(self.items + other.items, self.bytes + other.bytes, self.pixels + other.pixels)

    def minus(self, other: Cost) -> Cost:
        """Return the difference."""
        return Cost(self.items - other.items, self.bytes - other.bytes, self.pixels - other.pixels)

    def within(self, limit: Cost) -> bool:
        """Return whether no part is over that of `limit`."""
        return self.items <= limit.items and self.bytes <= limit.bytes and self.pixels <= limit.pixels


@dataclass(slots=True)
class _Waiting:
    cost: Cost
    admitted: asyncio.Future[None]


class Admission:
    """Counts what is between arrival and reply. Lives on the event loop and awaits nothing while it counts."""

    def __init__(self, limit: Cost, *, least: int = 48, wait_s: float = 0.1) -> None:
        self._limit = limit
        self._least = least
        self._wait_s = wait_s
        self.held = Cost()
        self.interactive = 0
        self.refused = 0
        self._queue: deque[_Waiting] = deque()
        self._rate = Rate()

    @asynccontextmanager
    async def admit(self, cost: Cost, *, wait: bool, bulk: bool) -> AsyncIterator[None]:
        """Hold `cost` while the block runs.

        With `wait`, as streams do, wait in line for room; else raise ResourceExhausted with a time to
        retry. Raises OutOfRange for what would not fit an idle server.
        """
        # One picture over the pixel budget is for max_pixels to judge, not for this.
        if not Cost(cost.items, cost.bytes).within(self._limit) or (cost.items > 1 and not cost.within(self._limit)):
            raise OutOfRange(
                f"{cost.items} images of {cost.bytes} bytes and {cost.pixels} pixels at once are over what this "
                f"server queues ({self._limit.items} images, {self._limit.bytes} bytes, {self._limit.pixels} pixels): "
                "send fewer per request"
            )
        if wait:
            await self._enter(cost)
        elif not self._queue_jumped(cost) or not (bulk or self._prompt(cost)):
            self.refused += cost.items
            delay = min(max(self.held.items / self._rate.per_s, 0.1), 30.0)
            raise ResourceExhausted(
                f"{self.held.items} images are queued already: retry after {delay:.1f} s", retry_after_s=delay
            )
        else:
            self._take(cost)
        self.interactive += 0 if bulk else cost.items
        try:
            yield
        finally:
            self.interactive -= 0 if bulk else cost.items
            self._rate.done(cost.items)
            self._release(cost)

    def images_per_s(self) -> float:
        """Return how many images a second leave the server while it is busy."""
        return self._rate.per_s

    def _prompt(self, cost: Cost) -> bool:
        """Return whether interactive images would be done soon."""
        after = self.interactive + cost.items
        return after <= max(self._least, self._rate.per_s * self._wait_s)

    def _queue_jumped(self, cost: Cost) -> bool:
        """Return whether there is room for a caller who does not wait. Those who do may take all but a part of it."""
        return self.held.plus(cost).within(self._limit) or not self.held.items

    async def _enter(self, cost: Cost) -> None:
        if not self._queue and self._has_room(cost):
            self._take(cost)
            return
        place = _Waiting(cost, asyncio.get_running_loop().create_future())
        self._queue.append(place)
        try:
            await place.admitted
        except asyncio.CancelledError:
            if place in self._queue:
                self._queue.remove(place)
                self._admit_next()
            elif not place.admitted.cancelled():  # admitted in the very moment of giving up
                self._release(cost)
            raise

    def _has_room(self, cost: Cost) -> bool:
        """Return whether a patient caller may enter, leaving a part of the budget to those who do not wait."""
        most = Cost(*(value * 3 // 4 for value in (self._limit.items, self._limit.bytes, self._limit.pixels)))
        return self.held.plus(cost).within(most) or not self.held.items

    def _take(self, cost: Cost) -> None:
        if not self.held.items:
            self._rate.resume()
        self.held = self.held.plus(cost)

    def _release(self, cost: Cost) -> None:
        self.held = self.held.minus(cost)
        self._admit_next()

    def _admit_next(self) -> None:
        """Let in, in their order, those in line that fit now."""
        while self._queue and self._has_room(self._queue[0].cost):
            place = self._queue.popleft()
            if not place.admitted.cancelled():
                self._take(place.cost)
                place.admitted.set_result(None)


class Rate:
    """Images a second while there is work; time without any does not count."""

    def __init__(self) -> None:
        self.per_s = 50.0  # a guess, until measured
        self._done, self._busy_s = 0, 0.0
        self._since = time.monotonic()

    def resume(self) -> None:
        """Begin again after a pause."""
        self._since = time.monotonic()

    def done(self, items: int) -> None:
        """Count finished images."""
        now = time.monotonic()
        self._done += items
        self._busy_s += now - self._since
        self._since = now
        if self._busy_s >= WINDOW_S:
            self.per_s = max(0.7 * self.per_s + 0.3 * self._done / self._busy_s, 0.1)
            self._done, self._busy_s = 0, 0.0
