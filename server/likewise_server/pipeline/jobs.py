"""What travels: a request of one caller, its images, and what becomes of each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import structlog
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.backbones.replica import Pixels
from likewise_server.errors import LikewiseError
from likewise_server.images import Views

if TYPE_CHECKING:
    from likewise_server.pipeline.looks import Looks

log = structlog.get_logger()


@dataclass(slots=True)
class Embedded:
    """One image's vector, (dim,) float32, and the seconds that its stages took."""

    vector: NDArray[np.float32]
    decode_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0  # the batch's forward divided by its images


Outcome: TypeAlias = Embedded | LikewiseError


@dataclass(slots=True, eq=False)
class Request:
    """Images that one caller sent at once; they share a feature, a deadline and a future.

    `bulk` work yields to the rest. `deadline` is in time.monotonic() seconds. `views` are averaged into each vector.
    `fresh` ones are computed whatever the cache has: somebody measures how long that takes.
    """

    backbone: Backbone
    space: Space
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome | None]
    bulk: bool
    caller: int  # images of different callers take turns
    deadline: float | None
    views: Views = ""
    fresh: bool = False
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.outcomes)

    @property
    def ref(self) -> BackboneRef:
        """The feature that is asked for."""
        if self.space.backbone is None:
            raise RuntimeError("vectors from elsewhere are not embedded")
        return self.space.backbone

    @property
    def kept_under(self) -> str:
        """What the cache tells vectors of one picture apart by."""
        return f"{self.space.fingerprint}/{self.views}" if self.views else self.space.fingerprint

    def late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def gone(self) -> bool:
        """Return whether nobody waits for the answer any more."""
        return self.future.cancelled()


@dataclass(slots=True, eq=False)
class Job:
    """One image of a request on its way, or one of the `looks` at it."""

    request: Request
    index: int
    data: bytes
    key: bytes = b""  # of the cache
    pixels: Pixels | None = None
    decode_s: float = 0.0
    looks: Looks | None = None
    since: float = field(default_factory=time.monotonic)  # when it entered the queue it is in
    answered: bool = False  # on the event loop

    @property
    def feature(self) -> BackboneRef:
        """Images of one feature share a batch."""
        return self.request.ref


class Replies:
    """Carries outcomes from the threads to the event loop, many in one go."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._settled: deque[tuple[Job, Outcome]] = deque()
        self._scheduled = False

    def send(self, outcomes: Iterable[tuple[Job, Outcome]]) -> None:
        """Hand outcomes over. Any thread."""
        self._settled.extend(outcomes)
        if not self._scheduled:
            self._scheduled = True  # cleared before the queue is emptied, so that nothing is left behind
            try:
                self._loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop has closed: nobody waits any more
                log.debug("replies dropped, the event loop has closed")

    def fail(self, jobs: Sequence[Job], error: LikewiseError) -> None:
        """Answer `jobs` with one error."""
        self.send([(job, error) for job in jobs])

    def _flush(self) -> None:
        self._scheduled = False
        while self._settled:
            job, settled = self._settled.popleft()
            if job.answered:  # before the thread died that had it in hand
                continue
            job.answered = True
            outcome = settled if job.looks is None else job.looks.add(settled)
            if outcome is None:
                continue  # other looks at this picture are on their way
            request = job.request
            request.outcomes[job.index] = outcome
            request.missing -= 1
            if request.missing == 0 and not request.future.done():
                request.future.set_result([outcome for outcome in request.outcomes if outcome is not None])
