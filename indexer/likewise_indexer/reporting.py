"""How far a run is: a bar on a terminal, elsewhere a line on stderr now and then."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from likewise.progress import bar
from likewise_indexer.sources import Source

PERIOD_S = 10.0
log = logging.getLogger("likewise.index")


@dataclass(slots=True)
class Report:
    """Counts items that are dealt with."""

    advance: Callable[[int], None]
    total: int | None
    lines: bool
    count: int = 0
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def done(self) -> None:
        """Count one more."""
        self.count += 1
        self.advance(1)
        if self.lines and (now := time.monotonic()) - self.last >= PERIOD_S:
            self.last = now
            log.info("%d items, %.1f/s", self.count, self.count / (now - self.started))


@asynccontextmanager
async def reporting(source: Source, limit: int | None, *, wanted: bool | None) -> AsyncIterator[Report]:
    """Yield what counts items. `wanted`: True a bar, False none, None a bar on a terminal and lines elsewhere."""
    shown = sys.stderr.isatty() if wanted is None else wanted
    total = await asyncio.to_thread(source.count) if shown else None  # only a bar needs it: it walks the source
    if limit is not None:
        total = limit if total is None else min(limit, total)
    with bar("indexing", total, wanted=shown) as advance:
        yield Report(advance, total, lines=wanted is None and not shown)
