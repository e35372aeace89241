"""One thread for each device: it takes a batch, starts its forward, and answers the one before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef
from likewise_server.errors import Internal, LikewiseError
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.jobs import Embedded, Job, Outcome, Replies
from likewise_server.pipeline.observer import Observer
from likewise_server.pipeline.priority import yield_to_messages
from likewise_server.pipeline.queues import Batch, Call, Idle, Queues

log = structlog.get_logger()

HOPELESS = 8  # failed forwards in a row that are no longer the images' fault


@dataclass(slots=True)
class Running:
    """A batch whose forward has been started; `finish` waits for its vectors, (n, dim) float32."""

    batch: Batch
    finish: Callable[[], NDArray[np.float32]]
    started: float


class Device:
    """The thread of one device. Networks are touched by no other."""

    def __init__(
        self,
        index: int,
        name: str,
        queues: Queues,
        replies: Replies,
        cache: EmbeddingCache,
        observer: Observer,
        *,
        threads: int,
    ) -> None:
        """`threads`: of the cores that a forward may use on a CPU."""
        self.index, self.name = index, name
        # On a CPU the forward runs in this very thread: there is nothing to overlap it with.
        self._overlap = name != "cpu"
        self._queues, self._replies = queues, replies
        self._cache, self._observer = cache, observer
        self._cores = threads
        self._failures = 0  # forwards that failed one image at a time, since the last good one
        self._thread = threading.Thread(target=self._run, name=f"likewise-device-{index}", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Return whether the thread runs, and forwards have not all failed lately."""
        return self.running() and self._failures < HOPELESS

    def running(self) -> bool:
        """Return whether the thread has not ended."""
        return self._thread.is_alive()

    def probe(self, backbone: Backbone, ref: BackboneRef, pixels: NDArray[np.uint8]) -> None:
        """Run one image; if that works, past failures are forgiven. This device's thread only."""
        backbone.launch([pixels], ref, self.index)()
        self._failures = 0

    def join(self) -> None:
        """Wait until the thread has ended, after the queues were closed."""
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._cores)
        yield_to_messages()
        running: Running | None = None
        while True:
            work = self._queues.next_work(self.index, self._idle, wait=running is None)
            started = self._start(work) if isinstance(work, Batch) else None
            if running:
                self._finish(running)  # while the device computes the next one
                self._queues.done(running.batch.jobs)
            if isinstance(work, Call):
                work.work()
            if work is None and running is None:
                return
            if started and not self._overlap:
                self._finish(started)
                self._queues.done(started.batch.jobs)
                started = None
            running = started

    def _idle(self, why: Idle, seconds: float) -> None:
        self._observer.on_idle(self.name, why, seconds)

    def _start(self, batch: Batch) -> Running | None:
        started = time.monotonic()
        for job in batch.jobs:
            self._observer.on_stage("device_wait", started - job.since)
        try:
            return Running(batch, self._launch(batch.jobs), started)
        except Exception as error:  # noqa: BLE001  # sorted out there
            self._recover(batch.jobs, error)
            self._queues.done(batch.jobs)
            return None

    def _launch(self, jobs: list[Job]) -> Callable[[], NDArray[np.float32]]:
        request = jobs[0].request
        return request.backbone.launch([job.pixels for job in jobs if job.pixels is not None], request.ref, self.index)

    def _finish(self, running: Running) -> None:
        jobs = running.batch.jobs
        try:
            vectors = _whole(running.finish(), jobs)
        except Exception as error:  # noqa: BLE001  # sorted out there
            self._recover(jobs, error)
            return
        self._done(running.batch, vectors, running.started)

    def _done(self, batch: Batch, vectors: NDArray[np.float32], started: float) -> None:
        self._failures = 0
        seconds = time.monotonic() - started
        backbone = batch.jobs[0].request.backbone.name
        self._observer.on_batch(backbone, self.name, len(batch.jobs), seconds, batch.reason)
        self._answer(batch.jobs, vectors, started, seconds)

    def _recover(self, jobs: list[Job], error: Exception) -> None:
        """Halve a batch that failed until the images that cannot be embedded stand alone."""
        if isinstance(error, LikewiseError):
            self._replies.fail(jobs, error)
            return
        backbone = jobs[0].request.backbone.name
        if len(jobs) == 1:
            self._failures += 1
            log.error("forward failed", backbone=backbone, device=self.name, exc_info=error)
            self._replies.fail(jobs, Internal("the network failed on this image; the server's log has the details"))
            return
        log.warning("batch failed, halving it", backbone=backbone, images=len(jobs), error=str(error)[:200])
        middle = len(jobs) // 2
        for half in (jobs[:middle], jobs[middle:]):
            started = time.monotonic()
            try:
                vectors = _whole(self._launch(half)(), half)
            except Exception as again:  # noqa: BLE001  # sorted out in there
                self._recover(half, again)
            else:
                self._done(Batch(half, "halved"), vectors, started)

    def _answer(self, jobs: list[Job], vectors: NDArray[np.float32], started: float, seconds: float) -> None:
        share = seconds / len(jobs)
        outcomes: list[tuple[Job, Outcome]] = []
        for job, vector in zip(jobs, vectors, strict=True):
            if self._cache and job.key:
                self._cache.put(job.key, vector)
            outcomes.append((job, Embedded(vector, job.decode_s, started - job.since, share)))
        self._replies.send(outcomes)


def _whole(vectors: NDArray[np.float32], jobs: list[Job]) -> NDArray[np.float32]:
    """Return `vectors` if there is one for each job. Raises RuntimeError."""
    if len(vectors) != len(jobs):
        raise RuntimeError(f"the network gave {len(vectors)} vectors for {len(jobs)} images")
    return vectors
