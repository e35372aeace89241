"""Encoded images in, vectors out: admit, run through the pipeline, one row, or one error, per image."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine import joined
from likewise_server.engine.admission import Admission, Cost
from likewise_server.engine.compiler import Compiler
from likewise_server.engine.timings import Timings
from likewise_server.errors import InvalidArgument, LikewiseError, NotFound
from likewise_server.images import LOOKS, Views, peek_pixels
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.jobs import Embedded, Outcome

INTERACTIVE = 16  # images: a request of more is bulk work, which somebody waiting for one image should not feel


@dataclass(slots=True)
class Embeddings:
    """`vectors` (n, dim) float32 in the order asked, zero rows where `errors` has the index."""

    vectors: NDArray[np.float32]
    errors: dict[int, LikewiseError]
    space: Space
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Part:
    """A feature of a served backbone, and its space."""

    backbone: Backbone
    space: Space


class Embedder:
    """Runs images through served backbones, one or several joined."""

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
        """Return the one served backbone that `ref` names, by default the first. Raises NotFound."""
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
        return _whole(ref, await self._parts(ref))

    async def blocks(self, ref: BackboneRef | None = None) -> tuple[int, ...]:
        """Return how many numbers of a vector are each backbone's: one width, or those of the joined ones, in order.

        Raises what `space` does.
        """
        return tuple(part.space.dim for part in await self._parts(ref))

    async def _parts(self, ref: BackboneRef | None) -> list[Part]:
        refs: list[BackboneRef | None] = [ref]
        # A name that is served as it stands is one backbone, whatever is in it.
        if ref and ref.name not in self.backbones and joined.is_joined(ref):
            refs = [BackboneRef(name) for name in joined.names(ref)]
        resolved = [self.resolve(each) for each in refs]
        return [Part(backbone, await self._batcher.learn_space(backbone, full)) for backbone, full in resolved]

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
        views: Views = "",
        fresh: bool = False,
    ) -> Embeddings:
        """Embed encoded `images`. `deadline` is in time.monotonic() seconds.

        With `wait`, as streams and collections do, they are bulk work that queues instead of being refused;
        those of one `caller` (see `new_caller`) take turns with those of others. With `views` a vector has length 1
        and is the mean direction of so many looks at the image. `fresh` ones are computed whatever the cache has.
        Raises NotFound, InvalidArgument (layer, pooling) or ResourceExhausted for the whole call; what is wrong
        with one image is that image's entry in `errors`.
        """
        parts = await self._parts(ref)
        forwards = len(images) * LOOKS[views]
        bulk = wait or forwards * len(parts) > INTERACTIVE
        # Further looks and backbones cost forwards, no memory that counts: pixels are made only so far ahead of them.
        cost = Cost(len(images), sum(map(len, images)), sum(min(peek_pixels(i), self._max_pixels) for i in images))
        if self._compiler:
            for part in parts:
                self._compiler.note(part.backbone, _ref_of(part.space), forwards)

        async def one(part: Part) -> list[Outcome]:
            return await self._batcher.embed(
                images,
                part.backbone,
                part.space,
                deadline=deadline,
                bulk=bulk,
                caller=caller,
                views=views,
                fresh=fresh,
            )

        async with self.admission.admit(cost, wait=wait, bulk=bulk):
            # A task of its own is wanted only where there are others to run beside it.
            outcomes = [await one(parts[0])] if len(parts) == 1 else await asyncio.gather(*map(one, parts))
        each = [_collected(found, part.space) for found, part in zip(outcomes, parts, strict=True)]
        return each[0] if len(each) == 1 else _joined(_whole(ref, parts), each)

    def execution(self, ref: BackboneRef) -> str:
        """Return how `ref` runs: "compiled", "compiling" (eager until then) or "eager"."""
        if self.backbones[ref.name].compiled(ref):
            return "compiled"
        return "compiling" if self._compiler and self._compiler.pending(ref) else "eager"

    def close(self) -> None:
        """Finish what is queued and stop the threads."""
        self._batcher.close()


def _ref_of(space: Space) -> BackboneRef:
    if space.backbone is None:
        raise AssertionError("a backbone's space has its reference")
    return space.backbone


def _whole(ref: BackboneRef | None, parts: Sequence[Part]) -> Space:
    if ref is None or len(parts) == 1:
        return parts[0].space
    return joined.joined_space(ref, [part.space for part in parts])


def _collected(outcomes: Sequence[Outcome], space: Space) -> Embeddings:
    result = Embeddings(np.zeros((len(outcomes), space.dim), np.float32), {}, space)
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Embedded):
            result.vectors[index] = outcome.vector
            result.timings.decode_s += outcome.decode_s
            result.timings.queue_s += outcome.queue_s
            result.timings.forward_s += outcome.forward_s
        else:
            result.errors[index] = outcome
    return result


def _joined(space: Space, parts: Sequence[Embeddings]) -> Embeddings:
    vectors, missing = joined.side_by_side([part.vectors for part in parts])
    errors: dict[int, LikewiseError] = {}
    for part in reversed(parts):  # of several errors of one image, the first backbone's
        errors |= part.errors
    for index in map(int, np.flatnonzero(missing)):
        if index not in errors:
            errors[index] = InvalidArgument(
                f"a part of {_ref_of(space).name!r} makes nothing but zeros of this image, which is no direction: "
                "is it blank? Leave it out, or use one backbone"
            )
    vectors[list(errors)] = 0
    result = Embeddings(vectors, errors, space)
    for part in parts:
        result.timings.absorb(part.timings)
    return result
