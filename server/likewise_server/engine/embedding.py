"""Encoded images in, vectors out: admit → decode in the pool → batch → one row, or one error, per image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.batcher import Batcher, Embedded
from likewise_server.engine.admission import Admission
from likewise_server.engine.timings import Timings
from likewise_server.errors import DeadlineExceeded, LikewiseError, NotFound
from likewise_server.images import ImageLimits, Preprocessing, decode, preprocess


@dataclass(slots=True)
class Embeddings:
    """`vectors` (n, dim) float32 in the order asked, zero rows where `errors` has the index."""

    vectors: NDArray[np.float32]
    errors: dict[int, LikewiseError]
    space: Space
    timings: Timings = field(default_factory=Timings)


class Embedder:
    """Runs images through served backbones."""

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        batcher: Batcher,
        admission: Admission,
        *,
        limits: ImageLimits,
        decode_threads: int,
    ) -> None:
        self.backbones = backbones
        self.limits = limits
        self.admission = admission
        self._batcher = batcher
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="likewise-decode")

    def resolve(self, ref: BackboneRef | None) -> tuple[Backbone, BackboneRef]:
        """Return the served backbone that `ref` names, by default the first. Raises NotFound."""
        name = ref.name if ref and ref.name else next(iter(self.backbones))
        backbone = self.backbones.get(name)
        if backbone is None:
            served = ", ".join(self.backbones)
            raise NotFound(
                f"backbone {name!r} is not served here, only {served}: "
                f"restart with `likewise serve --backbone {name}` if it is a known one"
            )
        return backbone, backbone.ref(ref.layer, ref.pooling) if ref else backbone.ref()

    async def space(self, ref: BackboneRef | None = None) -> Space:
        """Return the space that `ref` embeds into. Raises NotFound, or InvalidArgument for a bad layer."""
        backbone, full = self.resolve(ref)
        return await self._batcher.learn_space(backbone, full)

    async def embed(
        self,
        images: Sequence[bytes],
        ref: BackboneRef | None = None,
        *,
        deadline: float | None = None,
        wait: bool = False,
    ) -> Embeddings:
        """Embed encoded `images`. `deadline` is in time.monotonic() seconds; `wait` queues instead of refusing.

        Raises NotFound, InvalidArgument (layer, pooling) or ResourceExhausted for the whole call;
        what is wrong with one image is that image's entry in `errors`.
        """
        backbone, full = self.resolve(ref)
        space = await self._batcher.learn_space(backbone, full)
        result = Embeddings(np.zeros((len(images), space.dim), np.float32), {}, space)
        async with self.admission.admit(len(images), sum(map(len, images)), wait=wait):
            work = [self._one(image, backbone, full, deadline, result.timings) for image in images]
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Embedded):
                result.vectors[index] = outcome.vector
            elif isinstance(outcome, LikewiseError):
                result.errors[index] = outcome
            else:
                raise outcome
        return result

    async def _one(
        self, data: bytes, backbone: Backbone, ref: BackboneRef, deadline: float | None, timings: Timings
    ) -> Embedded:
        loop = asyncio.get_running_loop()
        pixels, seconds = await loop.run_in_executor(
            self._decoders, _decode, data, backbone.preprocessing, self.limits, deadline
        )
        timings.decode_s += seconds
        embedded = await self._batcher.embed(backbone, ref, pixels, deadline)
        timings.queue_s += embedded.queue_s
        timings.forward_s += embedded.forward_s
        return embedded

    def close(self) -> None:
        """Finish what is queued and stop the threads."""
        self._decoders.shutdown()
        self._batcher.close()


def _decode(
    data: bytes, how: Preprocessing, limits: ImageLimits, deadline: float | None
) -> tuple[NDArray[np.uint8], float]:
    started = time.monotonic()
    if deadline is not None and started > deadline:
        raise DeadlineExceeded("the deadline passed before the image was decoded: allow more time or send less")
    pixels = preprocess(decode(data, limits), how)
    return pixels, time.monotonic() - started
