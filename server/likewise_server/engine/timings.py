"""Where a request's time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timings:
    """Seconds per stage, summed over the images where stages run side by side."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    store_s: float = 0.0
    head_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def total_s(self) -> float:
        """Return the wall-clock seconds since the request began."""
        return time.monotonic() - self.started

    def absorb(self, other: Timings) -> None:
        """Add another part's stages to these."""
        for stage in ("decode_s", "queue_s", "forward_s", "store_s", "head_s"):
            setattr(self, stage, getattr(self, stage) + getattr(other, stage))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time the block takes to stage `name`: "store" or "head"."""
        started = time.monotonic()
        try:
            yield
        finally:
            attribute = f"{name}_s"
            setattr(self, attribute, getattr(self, attribute) + time.monotonic() - started)
