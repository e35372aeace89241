"""Threads that turn encoded images into pixels, or into the answer that the cache has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import structlog
import torch
from threadpoolctl import threadpool_limits

from likewise_server.backbones.replica import Pixels
from likewise_server.errors import Internal, LikewiseError
from likewise_server.images import Decoding, ImageLimits, Preprocessing, Views, pixels_of
from likewise_server.nvjpeg import NvjpegDecoder
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.jobs import Embedded, Job, Replies
from likewise_server.pipeline.looks import Looks
from likewise_server.pipeline.observer import Observer
from likewise_server.pipeline.priority import yield_to_messages
from likewise_server.pipeline.queues import Queues
from likewise_server.threads import LastingThread

log = structlog.get_logger()

DIED = "the thread that had this image died: send it again; the server's log has the details"


class Decode(Protocol):
    """Turns encoded images into pixels; from several threads at once."""

    at_once: int  # images that it likes to get together

    def __call__(
        self, images: Sequence[bytes], how: Preprocessing, views: Views, /
    ) -> Sequence[Pixels | LikewiseError]:
        """Return the pixels, or what is wrong, for each image; with `views`, those of all looks at it in a stack."""

    def close(self) -> None:
        """Let go of what it has, when nobody calls any more."""


class CpuDecode:
    """libjpeg-turbo and Pillow, one image at a time."""

    at_once = 1

    def __init__(self, limits: ImageLimits, decoding: Decoding) -> None:
        self._limits, self._decoding = limits, decoding

    def __call__(self, images: Sequence[bytes], how: Preprocessing, views: Views) -> list[Pixels | LikewiseError]:
        """See Decode."""
        return [self._one(data, how, views) for data in images]

    def _one(self, data: bytes, how: Preprocessing, views: Views) -> Pixels | LikewiseError:
        try:
            return pixels_of(data, how, self._limits, self._decoding, views)
        except LikewiseError as error:
            return error

    def close(self) -> None:
        """See Decode."""


class GpuDecode:
    """nvJPEG on the first GPU, in batches; what it refuses goes the CPU's way, image by image."""

    at_once = 32

    def __init__(self, limits: ImageLimits, device: torch.device) -> None:
        self._limits, self._decoder = limits, NvjpegDecoder(device)

    def __call__(self, images: Sequence[bytes], how: Preprocessing, views: Views) -> Sequence[Pixels | LikewiseError]:
        """See Decode."""
        return self._decoder.decode_many(images, how, self._limits, views)

    def close(self) -> None:
        """See Decode."""


class Decoders:
    """The decode gate's threads; libjpeg and the resize let go of the GIL."""

    def __init__(
        self,
        decode: Decode,
        queues: Queues,
        replies: Replies,
        cache: EmbeddingCache,
        observer: Observer,
        *,
        threads: int,
    ) -> None:
        self._decode, self._queues, self._replies = decode, queues, replies
        self._cache, self._observer = cache, observer
        self._threads = [LastingThread(f"likewise-decode-{i}", self._run) for i in range(threads)]

    def alive(self) -> bool:
        """Return whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until the threads have ended, after the queues were closed."""
        for thread in self._threads:
            thread.join()
        self._decode.close()

    def _run(self) -> None:
        # Each resize is small, and its neighbours run at the same time: no pool of threads under each.
        threadpool_limits(1, user_api="openmp")
        yield_to_messages()
        while jobs := self._queues.next_encoded(self._decode.at_once):
            try:
                self._handle(jobs)
            except BaseException:  # of this thread; nobody may wait for what it had in hand
                for job in jobs:
                    self._queues.drop(job)
                self._replies.fail(jobs, Internal(DIED))
                raise

    def _handle(self, jobs: list[Job]) -> None:
        """Take each job out of `jobs` as it is answered or passed on."""
        started = time.monotonic()
        for job in jobs:
            self._observer.on_stage("decode_wait", started - job.since)
        jobs[:] = [job for job in jobs if not self._answered(job, started)]
        if jobs:
            self._decode_all(jobs)

    def _answered(self, job: Job, started: float) -> bool:
        """Answer from the cache if it can."""
        if not self._cache or job.request.fresh:
            return False
        job.key = self._cache.key(job.data, job.request.kept_under)
        vector = self._cache.get(job.key)
        self._observer.on_lookup(hit=vector is not None)
        if vector is None:
            return False
        self._queues.drop(job)
        self._replies.send([(job, Embedded(vector, time.monotonic() - started))])
        return True

    def _decode_all(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            request = jobs[0].request
            found = self._decode([job.data for job in jobs], request.backbone.preprocessing, request.views)
            if len(found) != len(jobs):
                raise RuntimeError(f"the decoder gave {len(found)} results for {len(jobs)} images")  # noqa: TRY301  # handled as any other bug of it
        except Exception:
            log.exception("decoding failed")
            found = [Internal("the image could not be decoded; the server's log has the details")] * len(jobs)
        seconds = (time.monotonic() - started) / len(jobs)
        for pixels in found:
            job = jobs[0]
            job.data = b""  # no longer needed, and large
            self._observer.on_stage("decode", seconds)
            if isinstance(pixels, LikewiseError):
                self._queues.drop(job)
                self._replies.fail([job], pixels)
            else:
                self._queues.put_decoded(*self._ready(job, pixels, seconds))
            del jobs[0]

    def _ready(self, job: Job, pixels: Pixels, seconds: float) -> list[Job]:
        """Return the job with its pixels, or a job for each look at its picture."""
        if not job.request.views:
            job.pixels, job.decode_s = pixels, seconds
            return [job]
        count = len(pixels)
        looks = Looks(count, partial(self._cache.put, job.key) if job.key else None)
        return [Job(job.request, job.index, b"", b"", one, seconds / count, looks) for one in pixels]
