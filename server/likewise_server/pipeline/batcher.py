"""Many callers' images in, full forward passes on every device, vectors out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.errors import Internal, LikewiseError
from likewise_server.images import Views
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.decoders import Decode, Decoders
from likewise_server.pipeline.devices import STALLED_S, Device
from likewise_server.pipeline.jobs import Job, Outcome, Replies, Request
from likewise_server.pipeline.observer import Observer, Silent
from likewise_server.pipeline.queues import Queues

log = structlog.get_logger()
T = TypeVar("T")


class Batcher:
    """Owns the decode threads and the thread of each device. Created and used on one event loop."""

    def __init__(
        self,
        decode: Decode,
        *,
        devices: Sequence[str] = ("cpu",),
        max_batch: int = 32,
        decode_threads: int = 1,
        cache: EmbeddingCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`devices` are the names of the replicas that every backbone has, in their order."""
        self._loop = asyncio.get_running_loop()
        self._replies = Replies(self._loop)
        self._callers = itertools.count()
        on_cpu = [name for name in devices if name == "cpu"]
        self.queues = Queues(self._replies, max_batch=max_batch, devices=len(devices), hold=bool(on_cpu))
        self.cache = cache or EmbeddingCache(0)
        observer = observer or Silent()
        cores = max(1, (os.cpu_count() or 1) // max(1, len(on_cpu)))
        self._decoders = Decoders(decode, self.queues, self._replies, self.cache, observer, threads=decode_threads)
        self.devices = [
            Device(index, name, self.queues, self._replies, self.cache, observer, threads=cores)
            for index, name in enumerate(devices)
        ]

    async def embed(
        self,
        images: Sequence[bytes],
        backbone: Backbone,
        space: Space,
        *,
        deadline: float | None = None,
        bulk: bool = False,
        caller: int | None = None,
        views: Views = "",
        fresh: bool = False,
    ) -> list[Outcome]:
        """Return a vector or an error for each encoded image, in their order.

        `bulk` images yield to the others; those of one `caller` (see `new_caller`; by default each call is
        one) take turns with those of the rest. After `deadline` (time.monotonic() seconds) an image that
        still waits gets DeadlineExceeded. Cancelling the await takes the images out of the queues. With `views` the
        vector is the mean direction of so many looks at the image. `fresh` ones are not looked up in the cache.
        Raises Unavailable when shutting down.
        """
        if not images:
            return []
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        caller = self.new_caller() if caller is None else caller
        request = Request(backbone, space, future, [None] * len(images), bulk, caller, deadline, views, fresh)
        self.queues.put([Job(request, index, data) for index, data in enumerate(images)])
        return await future

    def new_caller(self) -> int:
        """Return a number for a caller of several requests, such as a stream."""
        return next(self._callers)

    async def learn_space(self, backbone: Backbone, ref: BackboneRef) -> Space:
        """Return the space of `ref`; the first time, by a forward pass in the first device's thread."""
        known = backbone.space(ref)
        if known is None:
            known = await self.on_device(0, partial(backbone.learn_space, ref))
        return known

    async def on_device(self, device: int, work: Callable[[], T]) -> T:
        """Return what `work` returns in the thread of a device. Raises what it raises, Internal for a bug."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                result = work()
            except LikewiseError as error:
                self._post(_settle, future, error)
            except Exception as error:
                log.exception("work on a device failed")
                self.devices[device].judge(error)
                self._post(_settle, future, Internal(f"the network failed ({type(error).__name__}); see the log"))
            except BaseException:  # of the thread, which begins again
                self._post(_settle, future, Internal("the thread of this device died; see the log"))
                raise
            else:
                self._post(_settle, future, result)

        self.queues.call(device, run)
        if not self.devices[device].running():  # nobody would ever do it
            raise Internal("the thread of this device has ended: restart the server")
        return await future

    def alive(self) -> bool:
        """Return whether images are embedded, as far as one can tell."""
        return not self.trouble()

    def trouble(self) -> str:
        """Return why images are not embedded, empty if they are: a thread, a device or the queues."""
        if not self._decoders.alive():
            return "a decode thread has ended"
        stalled = self.queues.stalled()
        if stalled > STALLED_S:
            return f"nothing has come out of the queues for {stalled:.0f} s, and {self.queues.waiting()} images wait"
        return next(filter(None, (device.trouble() for device in self.devices)), "")

    def lost(self) -> str:
        """Return why a device is of no more use to this process, empty where all are."""
        return next((f"{device.name}: {device.lost}" for device in self.devices if device.lost), "")

    def close(self) -> None:
        """Finish what is queued, then stop the threads."""
        self.queues.close()
        self._decoders.join()
        for device in self.devices:
            device.join()

    def _post(self, settle: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(settle, *args)
        except RuntimeError:  # the loop has closed: nobody waits any more
            log.debug("result dropped, the event loop has closed")


def _settle(future: asyncio.Future[T], result: T | LikewiseError) -> None:
    if future.done():
        return
    if isinstance(result, LikewiseError):
        future.set_exception(result)
    else:
        future.set_result(result)
