"""One thread for each device: it takes a batch, starts its forward, and answers the one before."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef
from likewise_server.errors import Internal, LikewiseError, ResourceExhausted, Unavailable
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.faults import fault_of
from likewise_server.pipeline.jobs import Embedded, Job, Outcome, Replies
from likewise_server.pipeline.observer import Observer
from likewise_server.pipeline.priority import yield_to_messages
from likewise_server.pipeline.queues import Batch, Call, Idle, Queues
from likewise_server.threads import LastingThread

log = structlog.get_logger()

HOPELESS = 8  # failed forwards in a row that are no longer the images' fault
STALLED_S = 300.0  # longer than any forward takes
SMALLER_S = 300.0  # for which batches stay smaller after one did not fit into memory

DIED = "the thread of this device died with the image in hand: send it again; the server's log has the details"
FAILED = "the network failed on this image; the server's log has the details"
LOST = "a device of this server failed for good and the server ends: send it again in a moment, or to another one"


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
        self._hand: list[Batch] = []  # taken from the queues and not answered
        self._since: float | None = None  # when the work in hand was begun
        self.lost = ""  # why no forward can succeed any more in this process
        self._thread = LastingThread(f"likewise-device-{index}", self._run)

    def trouble(self) -> str:
        """Return why this device does not serve, empty if it does."""
        if self.lost:
            return f"{self.name}: {self.lost}"
        if not self.running():
            return f"the thread of {self.name} has ended"
        if self.failing():
            return f"the last {self._failures} forwards on {self.name} failed"
        since = self._since
        busy = 0.0 if since is None else time.monotonic() - since
        return f"{self.name} has been busy with one batch for {busy:.0f} s" if busy > STALLED_S else ""

    def failing(self) -> bool:
        """Return whether forwards have all failed lately; a `probe` that works forgives."""
        return self._failures >= HOPELESS

    def running(self) -> bool:
        """Return whether the thread has not ended."""
        return self._thread.is_alive()

    def probe(self, backbone: Backbone, ref: BackboneRef, pixels: NDArray[np.uint8]) -> None:
        """Run one image; if that works, past failures are forgiven. This device's thread only."""
        backbone.launch([pixels], ref, self.index)()
        self._failures = 0

    def judge(self, error: Exception) -> None:
        """Give the device up if `error` says that no later forward can succeed. This device's thread only."""
        if fault_of(error) == "device" and not self.lost:
            self.lost = str(error).partition("\n")[0][:200]
            log.critical("the device cannot be used any more", device=self.name, exc_info=error)

    def join(self) -> None:
        """Wait until the thread has ended, after the queues were closed."""
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._cores)
        yield_to_messages()
        try:
            self._serve()
        except BaseException:  # of this thread; nobody may wait for what it had in hand
            for batch in list(self._hand):
                self._replies.fail(batch.jobs, Internal(DIED))
                self._let_go(batch)
            raise

    def _serve(self) -> None:
        running: Running | None = None
        while True:
            if running is None:
                self._since = None
            work = self._queues.next_work(self.index, self._idle, wait=running is None)
            self._since = time.monotonic()
            started = self._start(work) if isinstance(work, Batch) else None
            if running:
                self._finish(running)  # while the device computes the next one
            if isinstance(work, Call):
                work.work()
            if work is None and running is None:
                return
            if started and not self._overlap:
                self._finish(started)
                started = None
            running = started

    def _let_go(self, batch: Batch) -> None:
        self._hand.remove(batch)
        self._queues.done(batch.jobs)

    def _idle(self, why: Idle, seconds: float) -> None:
        self._observer.on_idle(self.name, why, seconds)

    def _start(self, batch: Batch) -> Running | None:
        self._hand.append(batch)
        started = time.monotonic()
        for job in batch.jobs:
            self._observer.on_stage("device_wait", started - job.since)
        try:
            return Running(batch, self._launch(batch.jobs), started)
        except Exception as error:  # noqa: BLE001  # sorted out there
            self._recover(batch.jobs, error)
            self._let_go(batch)
            return None

    def _launch(self, jobs: list[Job]) -> Callable[[], NDArray[np.float32]]:
        if self.lost:
            raise Unavailable(LOST)
        request = jobs[0].request
        return request.backbone.launch([job.pixels for job in jobs if job.pixels is not None], request.ref, self.index)

    def _finish(self, running: Running) -> None:
        jobs = running.batch.jobs
        try:
            vectors = _whole(running.finish(), jobs)
        except Exception as error:  # noqa: BLE001  # sorted out there
            self._recover(jobs, error)
        else:
            self._done(running.batch, vectors, running.started)
        self._let_go(running.batch)

    def _done(self, batch: Batch, vectors: NDArray[np.float32], started: float) -> None:
        self._failures = 0
        seconds = time.monotonic() - started
        backbone = batch.jobs[0].request.backbone.name
        self._observer.on_batch(backbone, self.name, len(batch.jobs), seconds, batch.reason)
        self._answer(batch.jobs, vectors, started, seconds)

    def _recover(self, jobs: list[Job], error: Exception) -> None:
        """Halve a batch that failed until it fits into memory, or the images that cannot be embedded stand alone."""
        # What the forward had computed so far hangs on the error's frames, and takes the memory that halves need.
        traceback.clear_frames(error.__traceback__)
        self.judge(error)
        if self.lost:
            self._replies.fail(jobs, Unavailable(LOST))
            return
        if isinstance(error, LikewiseError):
            self._replies.fail(jobs, error)
            return
        backbone, memory = jobs[0].request.backbone.name, fault_of(error) == "memory"
        if len(jobs) == 1:
            self._failures += 1
            log.error("forward failed", backbone=backbone, device=self.name, exc_info=error)
            self._replies.fail(jobs, _too_large() if memory else Internal(FAILED))
            return
        log.warning("batch failed, halving it", backbone=backbone, images=len(jobs), error=str(error)[:200])
        middle = len(jobs) // 2
        if memory:
            self._queues.limit(jobs[0].feature, middle, SMALLER_S)
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


def _too_large() -> ResourceExhausted:
    return ResourceExhausted(
        "there is not enough memory on the device for one image: try again in a moment, "
        "or serve a smaller backbone or fewer of them",
        retry_after_s=1.0,
    )


def _whole(vectors: NDArray[np.float32], jobs: list[Job]) -> NDArray[np.float32]:
    """Return `vectors` if there is one for each job. Raises RuntimeError."""
    if len(vectors) != len(jobs):
        raise RuntimeError(f"the network gave {len(vectors)} vectors for {len(jobs)} images")
    return vectors
