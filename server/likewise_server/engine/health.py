"""Whether what the server promises would be kept now, and if not, why: asked about once a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from likewise_server.engine.embedding import Embedder
from likewise_server.errors import LikewiseError
from likewise_server.pipeline.batcher import Batcher
from likewise_server.store.types import Store

WRITE_EVERY_S = 30.0  # while all is well
WRITE_AGAIN_S = 2.0  # while writes fail
PROBE_S = 1.0  # that an answer to a probe is waited for; one that takes longer is looked at the next time
WRITE_LATE_S = 30.0  # after which a write that has not come back has failed


@dataclass(frozen=True, slots=True)
class Condition:
    """Why images are not embedded and why nothing is written, each empty where all is well.

    `lost`: why this process cannot be helped and has to end.
    """

    embedding: str = ""
    store: str = ""
    lost: str = ""


class Probe:
    """An attempt that may hang: one at a time, and nobody waits for it for long."""

    def __init__(self, attempt: Callable[[], Awaitable[None]]) -> None:
        self._attempt = attempt
        self._task: asyncio.Task[str] | None = None
        self._began = self._ended = -float("inf")
        self.trouble = ""  # that the last one met

    def age(self) -> float:
        """Return the seconds since the last attempt ended."""
        return time.monotonic() - self._ended

    def under_way(self) -> float:
        """Return for how many seconds an attempt has been under way, 0 where none is."""
        return time.monotonic() - self._began if self._task else 0.0

    async def run(self) -> None:
        """Begin an attempt unless one is under way, and wait a moment for its end."""
        if self._task is None:
            self._began = time.monotonic()
            self._task = asyncio.create_task(self._tried())
        done, _ = await asyncio.wait({self._task}, timeout=PROBE_S)
        if done:
            self.trouble, self._task, self._ended = self._task.result(), None, time.monotonic()

    def stop(self) -> None:
        """Wait for no attempt any more."""
        if self._task:
            self._task.cancel()

    async def _tried(self) -> str:
        try:
            await self._attempt()
        except LikewiseError as error:
            return error.message
        return ""


class Health:
    """Looks at the pipeline and the store, and tries what nobody does at the moment. Event loop only."""

    def __init__(self, embedder: Embedder, batcher: Batcher, store: Store) -> None:
        self._embedder, self._batcher, self._store = embedder, batcher, store
        self._forwards = Probe(self._forward)
        self._writes = Probe(partial(asyncio.to_thread, store.probe))

    async def check(self) -> Condition:
        """Return how things are now; takes about a second at most, whatever hangs."""
        return Condition(await self._embedding(), await self._writing(), self._batcher.lost())

    def close(self) -> None:
        """Wait for no probe any more."""
        self._forwards.stop()
        self._writes.stop()

    async def _embedding(self) -> str:
        if any(device.failing() and not device.lost for device in self._batcher.devices):
            await self._forwards.run()  # nobody sends images to a server that is not serving
        return self._batcher.trouble()

    async def _forward(self) -> None:
        """Run one blank image on every device that fails, so that one that works again is found to."""
        backbone, ref = self._embedder.resolve(None)
        crop = backbone.preprocessing.crop
        blank = np.zeros((crop, crop, 3), np.uint8)
        for device in self._batcher.devices:
            if device.failing():
                with contextlib.suppress(LikewiseError):  # what matters is whether forwards succeed now
                    await self._batcher.on_device(device.index, partial(device.probe, backbone, ref, blank))

    async def _writing(self) -> str:
        if not self._store.healthy():
            return "the writer has stopped: the log has the reason; restart the server"
        probe = self._writes
        wait_s = WRITE_AGAIN_S if probe.trouble or self._store.doubtful() else WRITE_EVERY_S
        if probe.age() >= wait_s or probe.under_way():
            await probe.run()
        late = probe.under_way()
        return f"a small write has not come back for {late:.0f} s" if late > WRITE_LATE_S else probe.trouble
