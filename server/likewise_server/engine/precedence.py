"""Searches go first: while there are any, writes of many items take turns with them instead of crowding them out.

What a write costs a search is not the store, which lets both work, but the processor and the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

QUIET_S = 0.02  # without a search: callers who ask one thing after the other pause for less
STEP_S = 0.004
FEW = 64  # items that nobody notices; many small writes share a commit, which taking turns would forbid
LONGEST_S = 0.2  # that a write waits


class Precedence:
    """Who searches, and who may write. For one event loop."""

    def __init__(self) -> None:
        self._searches = 0
        self._ended = -QUIET_S
        self._one = asyncio.Lock()
        self._took = 0.0

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Count a search for as long as it goes on."""
        self._searches += 1
        try:
            yield
        finally:
            self._searches -= 1
            self._ended = time.monotonic()

    @asynccontextmanager
    async def writing(self, items: int) -> AsyncIterator[None]:
        """Let a write in: at once if it is small or nobody searches.

        Else alone, and after a pause as long as the last one took: so large writes have half of the time, however much
        is searched. The pause ends when the searches do.
        """
        if items <= FEW or not self._busy():
            yield
            return
        async with self._one:
            ends = time.monotonic() + self._took
            while self._busy() and time.monotonic() < ends:  # noqa: ASYNC110  # that nothing happens is no event
                await asyncio.sleep(STEP_S)
            began = time.monotonic()
            try:
                yield
            finally:
                self._took = min(time.monotonic() - began, LONGEST_S)

    async def breathe(self) -> None:
        """Let others have the event loop, and searches more than a moment of it."""
        await asyncio.sleep(STEP_S if self._busy() else 0)

    def _busy(self) -> bool:
        return self._searches > 0 or time.monotonic() - self._ended < QUIET_S
