"""One measurement's outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from common.figures import percentile_ms


@dataclass(slots=True)
class Reading:
    """So many images in so many seconds, with each call's seconds where calls were told apart."""

    images: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    generator_cpu: float = 0.0  # of one core, that this process took to make the load

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    def facts(self) -> dict[str, Any]:
        """Return what goes into the report."""
        facts: dict[str, Any] = {"images": self.images, "rate": self.rate, "generator_cpu": self.generator_cpu}
        if self.latencies:
            facts |= {"p50_ms": percentile_ms(self.latencies, 50), "p99_ms": percentile_ms(self.latencies, 99)}
        return facts


@contextmanager
def clocked(images: int) -> Iterator[Reading]:
    """Time the block, and the processor time of this process within it."""
    reading = Reading(images)
    cpu, started = time.process_time(), time.perf_counter()
    yield reading
    reading.seconds = time.perf_counter() - started
    reading.generator_cpu = (time.process_time() - cpu) / reading.seconds
