"""A decoder and a backbone without a network, that can be watched, held and broken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.backbone import LARGEST_BATCH
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine.admission import Admission, Cost
from likewise_server.engine.embedding import Embedder
from likewise_server.errors import InvalidArgument, LikewiseError
from likewise_server.images import LOOKS, Preprocessing, Views
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.jobs import Embedded
from support.waiting import PATIENCE_S


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other threads bring about."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.001)


class Valve:
    """Where threads stop: it is open, shut, or lets so many through."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._passes = 0
        self.held = 0  # threads that stand here

    def shut(self) -> None:
        with self._changed:
            self._open = False

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def let(self, passes: int) -> None:
        """Let through so many more than before."""
        with self._changed:
            self._passes += passes
            self._changed.notify_all()

    def pass_through(self) -> None:
        """Wait until the valve lets this thread through."""
        with self._changed:
            self.held += 1
            try:
                assert self._changed.wait_for(lambda: self._open or self._passes, PATIENCE_S), "held for ever"
                self._passes -= 0 if self._open else 1
            finally:
                self.held -= 1


def encoded(*values: int) -> list[bytes]:
    """Images for FakeDecode."""
    return [bytes([value % 256, value // 256]) for value in values]


BAD = b"?"  # an image that FakeDecode refuses


class FakeDecode:
    """Turns what `encoded` makes into 2 x 2 pixels that say which it was."""

    def __init__(self) -> None:
        self.at_once = 1
        self.valve = Valve()
        self.begun: list[int] = []  # images in the order in which they were taken in hand
        self.breaks = False
        self.dies = False  # and takes its thread with it

    def __call__(
        self, images: Sequence[bytes], how: Preprocessing, views: Views
    ) -> list[NDArray[np.uint8] | LikewiseError]:
        del how
        return [self._looks(self._one(data), views) for data in images]

    def close(self) -> None:
        """Nothing is held."""

    def _looks(self, made: NDArray[np.uint8] | LikewiseError, views: Views) -> NDArray[np.uint8] | LikewiseError:
        return made if isinstance(made, LikewiseError) or not views else np.stack([made] * LOOKS[views])

    def _one(self, data: bytes) -> NDArray[np.uint8] | LikewiseError:
        if self.breaks:
            raise RuntimeError("the decoder broke")
        if self.dies:
            raise SystemExit
        if data != BAD:
            self.begun.append(data[0] + 256 * data[1])
        self.valve.pass_through()
        if data == BAD:
            return InvalidArgument("not an image")
        pixels = np.zeros((2, 2, 3), np.uint8)
        pixels[0, 0, :2] = data[0], data[1]
        return pixels


class FakeBackbone:
    """The vector of an image is its number, plus 10_000 for each letter of the layer's name."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.preprocessing = Preprocessing(resize=2, crop=2)
        self.replicas: list[Any] = []
        self.best = LARGEST_BATCH
        self.launching, self.finishing = Valve(), Valve()
        self.slow: dict[int, Valve] = {}  # valves of single devices, at launch
        self.broken: set[int] = set()  # images on which a forward fails
        self.error: Exception = ValueError("broken image")
        self.breaks_at = "launch"
        self.batches: list[list[int]] = []  # in the order of their launch
        self.devices: list[int] = []  # that they were launched on
        self.events: list[tuple[str, list[int]]] = []  # launches and ends
        self.learned = 0
        self._spaces: dict[BackboneRef, Space] = {}

    def ref(self, layer: str = "", pooling: str = "") -> BackboneRef:
        return BackboneRef(self.name, layer, pooling)

    def best_batch(self, ref: BackboneRef) -> int:
        del ref
        return self.best

    def space(self, ref: BackboneRef) -> Space | None:
        return self._spaces.get(ref)

    def compiled(self, ref: BackboneRef) -> bool:
        del ref
        return False

    def learn_space(self, ref: BackboneRef) -> Space:
        self.learned += 1
        self._spaces[ref] = Space(f"print of {ref}", 1, ref)
        return self._spaces[ref]

    def launch(
        self, pixels: Sequence[NDArray[np.uint8]], ref: BackboneRef, device: int = 0
    ) -> Callable[[], NDArray[np.float32]]:
        values = [int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in pixels]
        self.batches.append(values)
        self.devices.append(device)
        self.events.append(("launch", values))
        if device in self.slow:
            self.slow[device].pass_through()
        self.launching.pass_through()
        self._check(values, "launch")

        def finish() -> NDArray[np.float32]:
            self.finishing.pass_through()
            self._check(values, "finish")
            self.events.append(("end", values))
            return np.array(values, np.float32)[:, None] + 10_000 * len(ref.layer)

        return finish

    def _check(self, values: list[int], step: str) -> None:
        if self.breaks_at == step and self.broken.intersection(values):
            raise self.error


class Counts:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self.batches: list[tuple[str, str, int, str]] = []  # backbone, device, images, reason
        self.idle: list[tuple[str, str]] = []  # device, reason
        self.hits = 0
        self.misses = 0

    def on_stage(self, stage: str, seconds: float) -> None:
        self.stages.append((stage, seconds))

    def on_batch(self, backbone: str, device: str, images: int, seconds: float, reason: str) -> None:
        assert seconds >= 0
        self.batches.append((backbone, device, images, reason))

    def on_idle(self, device: str, why: str, seconds: float) -> None:
        assert seconds >= 0
        self.idle.append((device, why))

    def on_lookup(self, *, hit: bool) -> None:
        self.hits += hit
        self.misses += not hit


class Rig:
    """Makes batchers around one decoder, and lets everything go at the end, so that a failed test does not hang."""

    def __init__(self) -> None:
        self.decode = FakeDecode()
        self.counts = Counts()
        self._batchers: list[Batcher] = []
        self._backbones: list[FakeBackbone] = []

    def batcher(self, **options: Any) -> Batcher:
        made = Batcher(self.decode, observer=self.counts, **options)
        self._batchers.append(made)
        return made

    def backbone(self, name: str = "fake") -> FakeBackbone:
        made = FakeBackbone(name)
        self._backbones.append(made)
        return made

    def embedder(self, batcher: Batcher, backbone: Any, **options: Any) -> Embedder:
        limit = Cost(options.pop("items", 4096), options.pop("bytes", 2**30), options.pop("pixels", 2**40))
        return Embedder({backbone.name: backbone}, batcher, Admission(limit, **options), max_pixels=1000)

    async def close(self) -> None:
        self.decode.valve.open()
        for backbone in self._backbones:
            for valve in (backbone.launching, backbone.finishing, *backbone.slow.values()):
                valve.open()
        for batcher in self._batchers:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.to_thread(batcher.close)


async def ask(
    batcher: Batcher, backbone: Any, *values: int, layer: str = "", **options: Any
) -> list[float | LikewiseError]:
    """Embed the images of these numbers; return the numbers in their vectors, or what is wrong."""
    ref = backbone.ref(layer)
    outcomes = await batcher.embed(encoded(*values), backbone, Space(f"print of {ref}", 1, ref), **options)
    return [float(outcome.vector[0]) if isinstance(outcome, Embedded) else outcome for outcome in outcomes]


def asking(*arguments: Any, **options: Any) -> asyncio.Task[list[float | LikewiseError]]:
    """Ask in the background."""
    return asyncio.create_task(ask(*arguments, **options))
