"""The two gates: encoded images wait for a decode thread, decoded ones for a device. One lock guards both.

No timer waits to fill a batch. A device that computes elsewhere takes what is ready the moment it is
free. Where forwards and decoding share the same cores, taking one image at a time would only slow the
decoding of those behind it, so there a batch also waits for images that are on their way through the
decoder; it closes when it is full, when it has its share of all that is inside, or when nothing more is
on its way.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from likewise_server.backbones.base import BackboneRef
from likewise_server.errors import DeadlineExceeded, Unavailable
from likewise_server.pipeline.fair import FairQueue
from likewise_server.pipeline.jobs import Job, Replies

# Why a batch was closed: it was full; it was its share while more was being decoded; nothing more was in sight; or it
# is a part of one that failed.
Reason: TypeAlias = Literal["full", "decoding", "drained", "halved"]
# What a device waited for.
Idle: TypeAlias = Literal["no_requests", "decoding"]


@dataclass(slots=True)
class Batch:
    """Images of one feature for one forward."""

    jobs: list[Job]
    reason: Reason


@dataclass(slots=True)
class Call:
    """Other work for the thread of a device, such as learning a space."""

    work: Callable[[], None]


Work: TypeAlias = Batch | Call


class Queues:
    """Where jobs wait. Every method may be called from any thread."""

    def __init__(self, replies: Replies, *, max_batch: int, devices: int, hold: bool) -> None:
        """`hold`: let batches wait for images in the decoder, as where devices and decoder share cores."""
        self._replies = replies
        self._max_batch = max_batch
        self._hold = hold
        # Decoded pixels are large: beyond these, images wait encoded, where priorities still count.
        self._ahead = 2 * max_batch * devices
        self._encoded = FairQueue()
        self._decoded: OrderedDict[BackboneRef, FairQueue] = OrderedDict()
        self._ready = 0  # jobs in `_decoded`
        self._calls: list[deque[Call]] = [deque() for _ in range(devices)]
        # What will come out of the decoder, per feature: interactive, bulk.
        self._coming: dict[bool, Counter[BackboneRef]] = {False: Counter(), True: Counter()}
        self._inside: Counter[BackboneRef] = Counter()  # from `put` to `done` or `drop`
        self._devices = devices
        self._coming_since = 0.0  # when that began to be anything at all
        self._limits: dict[BackboneRef, tuple[int, float]] = {}  # largest batch, and until when
        self._moved = 0.0  # when an image last came, left or went on
        self._closing = False
        lock = threading.Lock()
        self._to_decode = threading.Condition(lock)
        self._to_device = threading.Condition(lock)

    def put(self, jobs: Sequence[Job]) -> None:
        """Take in encoded images. Raises Unavailable when shutting down."""
        with self._to_decode:
            self._refuse_if_closing()
            if not self._any_coming():
                self._coming_since = time.monotonic()
            if not self._inside:
                self._moved = time.monotonic()
            for job in jobs:
                self._encoded.put(job)
                self._coming[job.request.bulk][job.feature] += 1
                self._inside[job.feature] += 1
            self._to_decode.notify(len(jobs))

    def call(self, device: int, work: Callable[[], None]) -> None:
        """Have the thread of a device do something. Raises Unavailable when shutting down."""
        with self._to_device:
            self._refuse_if_closing()
            self._calls[device].append(Call(work))
            self._to_device.notify_all()

    def next_encoded(self, most: int) -> list[Job]:
        """Wait for images to decode that somebody still wants in time: `most` of one backbone; none at shutdown."""
        while True:
            with self._to_decode:
                self._to_decode.wait_for(self._may_decode)
                if not self._encoded:
                    return []
                jobs = self._encoded.take_alike(most)
            wanted = [job for job in jobs if self._wanted(job)]
            for job in jobs:
                if job not in wanted:
                    self.drop(job)
            if wanted:
                return wanted

    def put_decoded(self, *looks: Job) -> None:
        """Take in an image that is ready for a device, as one job or as one for each look at it."""
        image = looks[0]
        with self._to_device:
            self._came(image)
            queue = self._decoded.setdefault(image.feature, FairQueue())
            now = self._moved = time.monotonic()
            for job in looks:
                job.since = now
                queue.put(job)
            self._inside[image.feature] += len(looks) - 1
            self._ready += len(looks)
            self._wake_device(image.feature)

    def drop(self, job: Job) -> None:
        """Forget an image that will not come out of the decoder: answered, refused or given up."""
        with self._to_device:
            self._moved = time.monotonic()
            self._came(job)
            self._left(job)
            self._wake_device(job.feature)  # a batch may have waited for it

    def done(self, jobs: Sequence[Job]) -> None:
        """Forget images that a device has answered."""
        with self._to_device:
            self._moved = time.monotonic()
            for job in jobs:
                self._left(job)
            for ref in {job.feature for job in jobs}:
                self._wake_device(ref)  # what is enough for a batch has become less

    def next_work(self, device: int, on_idle: Callable[[Idle, float], None], *, wait: bool = True) -> Work | None:
        """Return a call, or a batch of one feature; None when shutting down, or without `wait` if there is nothing."""
        while True:
            with self._to_device:
                while not self._may_forward(device):
                    if not wait or self._finished():
                        return None
                    self._idle(on_idle)
                if self._calls[device]:
                    return self._calls[device].popleft()
                batch = self._take_batch()
                self._to_decode.notify_all()  # there is room for more
            wanted = [job for job in batch.jobs if self._wanted(job)]
            if len(wanted) < len(batch.jobs):
                self.done([job for job in batch.jobs if job not in wanted])
            if wanted:
                return Batch(wanted, batch.reason)

    def waiting(self) -> int:
        """Return how many images wait for the decoder or a device."""
        return len(self._encoded) + self._ready

    def oldest_wait(self) -> float:
        """Return the seconds that the image has waited that has been in its queue longest."""
        with self._to_device:
            since = [queue.oldest() for queue in (self._encoded, *self._decoded.values())]
        return time.monotonic() - min((s for s in since if s is not None), default=time.monotonic())

    def stalled(self) -> float:
        """Return for how many seconds nothing has moved although images are inside; 0 where none are."""
        with self._to_device:
            return time.monotonic() - self._moved if self._inside else 0.0

    def limit(self, feature: BackboneRef, most: int, seconds: float) -> None:
        """For some time make batches of a feature no larger than `most`: more does not fit a device's memory."""
        with self._to_device:
            self._limits[feature] = (max(1, most), time.monotonic() + seconds)

    def close(self) -> None:
        """Take in nothing more; threads get what is queued, then None."""
        with self._to_device:
            self._closing = True
            self._to_device.notify_all()
            self._to_decode.notify_all()

    # Below: with the lock held, but for _wanted.

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down: try another one, or again in a moment")

    def _idle(self, on_idle: Callable[[Idle, float], None]) -> None:
        """Wait to be woken, and tell what for."""
        began = time.monotonic()
        came = began if self._any_coming() else float("inf")
        self._to_device.wait()
        ended = time.monotonic()
        came = min(came, self._coming_since if self._coming_since > began else ended)
        if came > began:
            on_idle("no_requests", came - began)
        if ended > came:
            on_idle("decoding", ended - came)

    def _may_decode(self) -> bool:
        return (bool(self._encoded) and self._ready < self._ahead) or self._closing

    def _may_forward(self, device: int) -> bool:
        return bool(self._calls[device]) or any(self._closes(ref) for ref in self._decoded)

    def _finished(self) -> bool:
        return self._closing and not self._ready and not self._any_coming()

    def _wake_device(self, ref: BackboneRef) -> None:
        """Wake a device only for work: to wake it for each image would cost more than decoding a small one."""
        if self._closing or (ref in self._decoded and self._closes(ref)):
            self._to_device.notify_all()

    def _any_coming(self) -> bool:
        return any(counter.total() for counter in self._coming.values())

    def _came(self, job: Job) -> None:
        counter = self._coming[job.request.bulk]
        counter[job.feature] -= 1
        if not counter[job.feature]:
            del counter[job.feature]

    def _left(self, job: Job) -> None:
        self._inside[job.feature] -= 1
        if not self._inside[job.feature]:
            del self._inside[job.feature]

    def _enough(self, ref: BackboneRef) -> int:
        """Return how many images of a feature are worth a forward while more are coming.

        A full batch, or an equal part for each device and for the decoder of what is inside: with few callers, all
        of whom wait for their answers, a full batch would leave the decoder idle during the forward, and the
        devices while it decodes.
        """
        return min(self._batch_of(self._decoded[ref]), -(-self._inside[ref] // (self._devices + 1)))

    def _closes(self, ref: BackboneRef) -> bool:
        """Return whether the batch that could be made of `ref` should run now."""
        queue = self._decoded[ref]
        if not self._hold or len(queue) >= self._enough(ref) or self._ready >= self._ahead:
            return True
        # Interactive images wait for no bulk ones.
        return not self._coming[False][ref] if queue.interactive else not self._coming[True][ref]

    def _batch_of(self, queue: FairQueue) -> int:
        job = next(queue.interactive.heads(), None) or next(queue.bulk.heads())
        most, until = self._limits.get(job.feature, (self._max_batch, 0.0))
        if until < time.monotonic():
            most = self._max_batch
        return min(self._max_batch, most, job.request.backbone.best_batch(job.feature))

    def _take_batch(self) -> Batch:
        """Features take turns; of the next one that may close, take the largest batch."""
        ref = next(ref for ref in self._decoded if self._closes(ref))
        queue = self._decoded.pop(ref)
        size = self._batch_of(queue)
        jobs = [queue.take() for _ in range(min(size, len(queue)))]
        self._ready -= len(jobs)
        if queue:
            self._decoded[ref] = queue  # at the end of the line
        coming = self._coming[False][ref] + self._coming[True][ref]
        return Batch(jobs, "full" if len(jobs) == size else "decoding" if coming else "drained")

    def _wanted(self, job: Job) -> bool:
        """Return whether to go on with `job`; a late one is answered here."""
        if job.request.gone():
            return False
        if job.request.late():
            self._replies.fail([job], DeadlineExceeded(LATE))
            return False
        return True


LATE = "the deadline passed while the image was queued: allow more time or send less at once"
