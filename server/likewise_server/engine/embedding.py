"""Encoded images in, vectors out: admit, run through the pipeline, one row, or one error, per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine.admission import Admission, Cost
from likewise_server.engine.compiler import Compiler
from likewise_server.engine.timings import Timings
from likewise_server.errors import LikewiseError, NotFound
from likewise_server.images import peek_pixels
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.jobs import Embedded

INTERACTIVE = 16  # images: a request of more is bulk work, which somebody waiting for one image should not feel


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
        max_pixels: int,
        compiler: Compiler | None = None,
    ) -> None:
        self.backbones = backbones
        self.admission = admission
        self._max_pixels = max_pixels
        self._compiler = compiler
        self._batcher = batcher

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

    def new_caller(self) -> int:
        """Return a number under which the images of a stream take turns with those of others."""
        return self._batcher.new_caller()

    async def embed(
        self,
        images: Sequence[bytes],
        ref: BackboneRef | None = None,
        *,
        deadline: float | None = None,
        wait: bool = False,
        caller: int | None = None,
    ) -> Embeddings:
        """Embed encoded `images`. `deadline` is in time.monotonic() seconds.

        With `wait`, as streams and collections do, they are bulk work that queues instead of being refused;
        those of one `caller` (see `new_caller`) take turns with those of others. Raises NotFound,
        InvalidArgument (layer, pooling) or ResourceExhausted for the whole call; what is wrong with one
        image is that image's entry in `errors`.
        """
        backbone, full = self.resolve(ref)
        space = await self._batcher.learn_space(backbone, full)
        result = Embeddings(np.zeros((len(images), space.dim), np.float32), {}, space)
        bulk = wait or len(images) > INTERACTIVE
        cost = Cost(len(images), sum(map(len, images)), sum(min(peek_pixels(i), self._max_pixels) for i in images))
        if self._compiler:
            self._compiler.note(backbone, full, len(images))
        async with self.admission.admit(cost, wait=wait, bulk=bulk):
            outcomes = await self._batcher.embed(images, backbone, space, deadline=deadline, bulk=bulk, caller=caller)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Embedded):
                result.vectors[index] = outcome.vector
                result.timings.decode_s += outcome.decode_s
                result.timings.queue_s += outcome.queue_s
                result.timings.forward_s += outcome.forward_s
            else:
                result.errors[index] = outcome
        return result

    def execution(self, ref: BackboneRef) -> str:
        """Return how `ref` runs: "compiled", "compiling" (eager until then) or "eager"."""
        if self.backbones[ref.name].compiled(ref):
            return "compiled"
        return "compiling" if self._compiler and self._compiler.pending(ref) else "eager"

    def close(self) -> None:
        """Finish what is queued and stop the threads."""
        self._batcher.close()
