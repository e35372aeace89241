"""Many callers' pixels in, full forward passes through one device thread, vectors out.

The device takes what is queued the moment it is free: no timer waits to fill a batch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.errors import DeadlineExceeded, Internal, LikewiseError, Unavailable

log = structlog.get_logger()
T = TypeVar("T")


HOPELESS = 8  # failed forwards in a row that are no longer the images' fault


@dataclass(slots=True)
class Embedded:
    """One image's vector, (dim,) float32, and the seconds it waited and ran."""

    vector: NDArray[np.float32]
    queue_s: float
    forward_s: float  # the batch's forward divided by its images


@dataclass(slots=True)
class Job:
    """One image on its way through the device thread."""

    backbone: Backbone
    ref: BackboneRef
    pixels: NDArray[np.uint8]
    future: asyncio.Future[Embedded]
    deadline: float | None  # time.monotonic()
    queued_at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Call:
    """Some other work for the device thread, such as learning a space."""

    work: Callable[[], Space]
    future: asyncio.Future[Space]


OnBatch = Callable[[str, int, float], None]  # backbone, images, forward seconds


class Batcher:
    """Owns the thread that runs forwards. Created and used on one event loop."""

    def __init__(self, *, max_batch: int = 32, on_batch: OnBatch = lambda *_: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._jobs: deque[Job] = deque()
        self._calls: deque[Call] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failures = 0  # forwards that failed one image at a time, since the last good one
        self._thread = threading.Thread(target=self._run, name="likewise-device", daemon=True)
        self._thread.start()

    async def embed(
        self, backbone: Backbone, ref: BackboneRef, pixels: NDArray[np.uint8], deadline: float | None = None
    ) -> Embedded:
        """Return the vector of one (crop, crop, 3) uint8 image.

        Raises DeadlineExceeded if `deadline` (time.monotonic() seconds) passes while queued,
        Internal if the forward fails for this image, Unavailable when shutting down.
        Cancelling the await takes the image out of the queue.
        """
        job = Job(backbone, ref, pixels, self._loop.create_future(), deadline)
        self._put(self._jobs, job)
        return await job.future

    async def learn_space(self, backbone: Backbone, ref: BackboneRef) -> Space:
        """Return the space of `ref`; the first time, by a forward pass in the device thread."""
        known = backbone.space(ref)
        if known:
            return known
        call = Call(lambda: backbone.learn_space(ref), self._loop.create_future())
        self._put(self._calls, call)
        return await call.future

    def queued(self) -> int:
        """Return how many images wait for the device."""
        return len(self._jobs)

    def oldest_wait(self) -> float:
        """Return the seconds that the image at the head of the queue has waited."""
        try:
            return time.monotonic() - self._jobs[0].queued_at
        except IndexError:
            return 0.0

    def alive(self) -> bool:
        """Return whether the device thread runs, and forwards have not all failed lately."""
        return self._thread.is_alive() and self._failures < HOPELESS

    def close(self) -> None:
        """Finish what is queued, then stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _put(self, queue: deque[Job] | deque[Call], work: Job | Call) -> None:
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise Unavailable("the server is shutting down: try another one, or again in a moment")
            queue.append(work)  # type: ignore[arg-type]  # each kind has its queue
            self._wake.notify()

    # Below: the device thread.

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._calls or self._closing)
                if not self._jobs and not self._calls:
                    return
                calls, self._calls = list(self._calls), deque()
                batch = self._take_batch()
            for call in calls:
                self._answer(call)
            if batch:
                results = self._forward(batch)
                self._deliver(batch, results)

    def _take_batch(self) -> list[Job]:
        """Take the oldest live job and all that share its feature, up to the largest batch, in order."""
        batch: list[Job] = []
        expired: list[Job] = []
        later: list[Job] = []
        now = time.monotonic()
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs.popleft()
            if job.future.cancelled():
                continue
            if job.deadline is not None and now > job.deadline:
                expired.append(job)
            elif not batch or (job.backbone is batch[0].backbone and job.ref == batch[0].ref):
                batch.append(job)
            else:
                later.append(job)
        self._jobs.extendleft(reversed(later))
        late = DeadlineExceeded("the deadline passed while the image was queued: allow more time or send less at once")
        self._deliver(expired, [late] * len(expired))
        return batch

    def _forward(self, jobs: list[Job]) -> list[Embedded | LikewiseError]:
        """Run one batch; if it fails, halve it until the images that cannot be embedded stand alone."""
        backbone, ref, started = jobs[0].backbone, jobs[0].ref, time.monotonic()
        try:
            vectors = backbone.forward(np.stack([job.pixels for job in jobs]), ref)
        except LikewiseError as error:
            return [error] * len(jobs)
        except Exception:
            if len(jobs) == 1:
                self._failures += 1
                log.exception("forward failed", backbone=str(ref))
                return [Internal("the network failed on this image; the server's log has the details")]
            log.warning("batch failed, halving it", backbone=str(ref), images=len(jobs))
            middle = len(jobs) // 2
            return self._forward(jobs[:middle]) + self._forward(jobs[middle:])
        ended = time.monotonic()
        self._failures = 0
        self._on_batch(backbone.name, len(jobs), ended - started)
        share = (ended - started) / len(jobs)
        return [Embedded(vectors[i], started - job.queued_at, share) for i, job in enumerate(jobs)]

    def _deliver(self, jobs: list[Job], results: Sequence[Embedded | LikewiseError]) -> None:
        futures = [job.future for job in jobs]

        def settle() -> None:
            for future, result in zip(futures, results, strict=True):
                _settle(future, result)

        self._post(settle)

    def _answer(self, call: Call) -> None:
        result: Space | LikewiseError
        try:
            result = call.work()
        except LikewiseError as error:
            result = error
        except Exception:
            log.exception("learning a space failed")
            result = Internal("the network failed; the server's log has the details")
        self._post(lambda: _settle(call.future, result))

    def _post(self, work: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop has closed: nobody waits any more
            log.debug("result dropped, the event loop has closed")


def _settle(future: asyncio.Future[T], result: T | LikewiseError) -> None:
    if future.done():
        return
    if isinstance(result, LikewiseError):
        future.set_exception(result)
    else:
        future.set_result(result)
