"""Searches that ask the same of a collection at the same moment, made into one.

A store answers eight queries in one call for less than eight calls cost: one transaction, one pass over the
index, one trip to a thread. Nobody waits for company, though: a search starts at once while there is a core
for it, and only those that come meanwhile go together, as soon as one that runs is over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np

from likewise_server.store.types import Float32, SearchResult

ALONE = 16  # queries in one request that are enough company for each other
MOST = 64  # queries in one call

Waiting = tuple[Float32, "asyncio.Future[SearchResult]"]


@dataclass(slots=True)
class _Line:
    """Those who ask one thing: how many calls run for them, and who waits for the next."""

    running: int = 0
    waiting: list[Waiting] = field(default_factory=list)


class Merged:
    """Runs searches of a few queries together where they ask the same. For one event loop."""

    def __init__(self, at_once: int | None = None) -> None:
        """`at_once`: calls that run side by side before others wait for company.

        By default one a core, but for the one that the event loop keeps busy: of more, each call has less company, and
        all of them want the interpreter's lock.
        """
        self._at_once = at_once or max(1, (os.cpu_count() or 1) - 1)
        self._lines: dict[Hashable, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def search(
        self, asked: Hashable, vectors: Float32, call: Callable[[Float32], Awaitable[SearchResult]]
    ) -> SearchResult:
        """Return call(vectors), for vectors (n, dim); perhaps as a part of a call with others that `asked` the same.

        `call` has to mean the same for all who ask the same. What it raises, all in it get. A caller that goes
        away does not take the others with it.
        """
        if len(vectors) > ALONE:
            return await call(vectors)
        future: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault(asked, _Line())
        line.waiting.append((vectors, future))
        if line.running < self._at_once:
            line.running += 1
            task = asyncio.create_task(self._serve(asked, line, _next(line), call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _serve(
        self,
        asked: Hashable,
        line: _Line,
        together: list[Waiting],
        call: Callable[[Float32], Awaitable[SearchResult]],
    ) -> None:
        while together:
            try:
                found = await call(np.concatenate([vectors for vectors, _ in together]))
            except Exception as error:  # noqa: BLE001  # it is theirs who asked
                for _, future in together:
                    if not future.done():
                        future.set_exception(error)
            else:
                start = 0
                for vectors, future in together:
                    end = start + len(vectors)
                    if not future.done():
                        future.set_result(replace(found, hits=found.hits[start:end]))
                    start = end
            together = _next(line)
        line.running -= 1
        if not line.running:
            del self._lines[asked]


def _next(line: _Line) -> list[Waiting]:
    """Take as many as go into one call, leaving out who has gone."""
    line.waiting = [each for each in line.waiting if not each[1].done()]
    sizes = np.cumsum([len(vectors) for vectors, _ in line.waiting])
    count = max(1, int(np.searchsorted(sizes, MOST, side="right"))) if len(sizes) else 0
    taken, line.waiting = line.waiting[:count], line.waiting[count:]
    return taken
