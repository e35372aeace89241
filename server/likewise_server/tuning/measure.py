"""The clocks: images/s of decoding, of forwards, and of both at once; medians of repeated short runs."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.replica import Finish
from likewise_server.errors import LikewiseError
from likewise_server.images import Decoding, ImageLimits, Preprocessing, pixels_of
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.decoders import CpuDecode
from likewise_server.pipeline.observer import Silent
from likewise_server.pipeline.queues import Reason
from likewise_server.tuning.results import Latency

RUNS = 3  # a median wants three
CHUNK = 8  # images that a caller sends at once
LONGEST_FORWARD_S = 1.0  # a batch that takes longer is the last one tried
Launch = Callable[[int], Finish]  # starts a forward of so many images


def decode_rate(
    images: Sequence[bytes],
    how: Preprocessing,
    limits: ImageLimits,
    decoding: Decoding,
    *,
    threads: int,
    seconds: float,
) -> float:
    """Return images/s that `threads` decode together, the median of RUNS windows that take `seconds` in all."""

    def window(first: int) -> float:
        began = time.perf_counter()
        for done, data in enumerate(itertools.islice(itertools.cycle(images), first, None), 1):
            pixels_of(data, how, limits, decoding)
            if (passed := time.perf_counter() - began) >= seconds / RUNS:
                return done / passed
        raise InterruptedError  # a cycle does not end

    # As in the server: no pool of threads under each resize.
    with ThreadPoolExecutor(threads, initializer=lambda: threadpool_limits(1, user_api="openmp")) as pool:
        list(pool.map(lambda data: pixels_of(data, how, limits, decoding), images[: 2 * threads]))
        return statistics.median(sum(pool.map(window, range(threads))) for _ in range(RUNS))


def forward_rate(launch: Launch, batch: int, seconds: float) -> float:
    """Return images/s in batches of `batch`, by the median forward of what fits `seconds`, RUNS at least.

    As in the server, the next forward starts before the vectors of the one before are waited for.
    """
    launch(batch)()
    running = launch(batch)
    took: list[float] = []
    while sum(took) < seconds or len(took) < RUNS:
        began = time.perf_counter()
        coming = launch(batch)
        running()
        running = coming
        took.append(time.perf_counter() - began)
    running()
    return batch / statistics.median(took)


def latency(
    images: Sequence[bytes],
    launch: Launch,
    how: Preprocessing,
    limits: ImageLimits,
    decoding: Decoding,
    *,
    seconds: float,
) -> Latency:
    """Return the medians for one image alone, as on an idle server, without the wire. `seconds` bounds the work."""
    decodes: list[float] = []
    forwards: list[float] = []
    for data in itertools.cycle(images):
        began = time.perf_counter()
        pixels_of(data, how, limits, decoding)
        decoded = time.perf_counter()
        launch(1)()
        forwards.append(time.perf_counter() - decoded)
        decodes.append(decoded - began)
        if sum(decodes) + sum(forwards) >= seconds and len(forwards) > RUNS:
            break
    return Latency(round(1000 * statistics.median(decodes[1:]), 2), round(1000 * statistics.median(forwards[1:]), 2))


class Batches(Silent):
    """Notes when each batch ended, in time.perf_counter() seconds, and its images. Called from device threads."""

    def __init__(self) -> None:
        self.ended: list[tuple[float, int]] = []

    def on_batch(self, backbone: str, device: str, images: int, seconds: float, reason: Reason) -> None:  # noqa: ARG002
        """Note the time."""
        self.ended.append((time.perf_counter(), images))


async def both_rate(
    images: Sequence[bytes],
    backbone: Backbone,
    limits: ImageLimits,
    *,
    max_batch: int,
    decode_threads: int,
    seconds: float,
) -> float:
    """Return images/s from bytes to vectors through the server's own pipeline, without wire and cache.

    One window of `seconds` after a warm-up of half of it; a longer one where not a batch came to its end in that.
    Raises what an image gets.
    """
    batches = Batches()
    batcher = Batcher(
        CpuDecode(limits, backbone.decoding),
        devices=[str(replica.device) for replica in backbone.replicas],
        max_batch=max_batch,
        decode_threads=decode_threads,
        observer=batches,
    )
    try:
        # Twice what the queues hold ahead of the devices: they never run dry.
        callers = max(2, 4 * max_batch * len(backbone.replicas) // CHUNK)
        while True:
            began = await _fed(batcher, backbone, images, callers, seconds)
            if rate := rate_between(batches.ended, began, began + seconds):
                return rate
            seconds *= 4
    finally:
        await asyncio.to_thread(batcher.close)


async def _fed(batcher: Batcher, backbone: Backbone, images: Sequence[bytes], callers: int, seconds: float) -> float:
    """Send images for half of `seconds`, then for `seconds`; return when those began."""
    space = await batcher.learn_space(backbone, backbone.ref())
    source = itertools.cycle(images)

    async def send() -> None:
        caller = batcher.new_caller()
        while True:
            chunk = list(itertools.islice(source, CHUNK))
            for outcome in await batcher.embed(chunk, backbone, space, bulk=True, caller=caller):
                if isinstance(outcome, LikewiseError):
                    raise outcome

    tasks = [asyncio.create_task(send()) for _ in range(callers)]
    try:
        await _watched(tasks, seconds / 2)
        began = time.perf_counter()
        await _watched(tasks, seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return began


async def _watched(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Sleep, unless a task fails: then raise what it raised."""
    finished, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in finished:
        task.result()


def rate_between(ended: Sequence[tuple[float, int]], since: float, until: float) -> float:
    """Return images/s of batches, (when it ended, its images), from the first to the last in the window.

    Counting from one end to another keeps a part of a batch from blurring the rate. Where fewer than two ends
    fall into the window, its own length counts.
    """
    inside = [(at, images) for at, images in ended if since <= at < until]
    if len(inside) < 2 or inside[0][0] == inside[-1][0]:  # noqa: PLR2004  # ends
        return sum(images for _, images in inside) / (until - since)
    return sum(images for _, images in inside[1:]) / (inside[-1][0] - inside[0][0])
