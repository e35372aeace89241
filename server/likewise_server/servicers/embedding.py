"""EmbeddingService: messages in, the engine's vectors out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from likewise_server.backbones import registry
from likewise_server.backbones.base import BackboneRef
from likewise_server.engine.engine import Engine
from likewise_server.errors import InvalidArgument, Unavailable
from likewise_server.servicers import convert
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.limits import Limits
from likewise_server.servicers.windows import SHUTTING_DOWN, as_ready, until


class EmbeddingServicer(EmbeddingServiceServicer):
    """Embeds images and says what is served."""

    def __init__(self, engine: Engine, limits: Limits, draining: asyncio.Event, version: str) -> None:
        self._engine = engine
        self._limits = limits
        self._draining = draining
        self._version = version
        self._started = time.monotonic()

    async def Embed(self, request: epb.EmbedRequest, context: Context) -> epb.EmbedResponse:
        """Return one row per image."""
        self._limits.check_items(len(request.images), "images")
        if not request.images:
            raise InvalidArgument("no images: send at least one")
        images = [image.data for image in request.images]
        result = await self._engine.embedder.embed(
            images, convert.ref_from(request.backbone), deadline=deadline_of(context)
        )
        return epb.EmbedResponse(
            vectors=convert.matrix_to(result.vectors, request.dtype),
            errors=convert.item_errors(result.errors),
            space=convert.space_to(result.space),
            timings=convert.timings_to(result.timings),
        )

    async def EmbedStream(
        self, requests: AsyncIterator[epb.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[epb.EmbedStreamResponse]:
        """Reply to each message as its vectors are ready."""
        first: list[tuple[BackboneRef, pb.DType.ValueType]] = []
        caller = self._engine.embedder.new_caller()
        deadline = deadline_of(context)  # asked now: the context of a stream that was dropped may be gone

        async def one(request: epb.EmbedStreamRequest) -> epb.EmbedStreamResponse:
            if not first:
                first.append((convert.ref_from(request.backbone), request.dtype))
            ref = convert.ref_from(request.backbone) if request.HasField("backbone") else first[0][0]
            images = self._images_of(request)
            result = await self._engine.embedder.embed(images, ref, deadline=deadline, wait=True, caller=caller)
            reply = epb.EmbedStreamResponse(
                item_id=request.item_id,
                space=convert.space_to(result.space),
                timings=convert.timings_to(result.timings),
            )
            if result.errors and not request.images:
                reply.error.CopyFrom(convert.status_of(result.errors[0]))
                return reply
            reply.vector.CopyFrom(convert.matrix_to(result.vectors, request.dtype or first[0][1]))
            reply.errors.extend(convert.item_errors(result.errors))
            return reply

        def size(request: epb.EmbedStreamRequest) -> int:
            return len(request.image.data) + sum(len(image.data) for image in request.images)

        read = until(requests, self._draining)
        async for reply in as_ready(read, one, self._limits.stream_window, size, self._limits.max_message_bytes):
            yield reply
        if self._draining.is_set():
            raise Unavailable(SHUTTING_DOWN)

    def _images_of(self, request: epb.EmbedStreamRequest) -> list[bytes]:
        if not request.images:
            return [request.image.data]
        if request.HasField("image"):
            raise InvalidArgument("a message has image and images: send one image, or several, not both")
        self._limits.check_items(len(request.images), "images")
        return [image.data for image in request.images]

    async def ListBackbones(
        self,
        request: epb.ListBackbonesRequest,
        context: Context,  # noqa: ARG002  # the signature is gRPC's
    ) -> epb.ListBackbonesResponse:
        """List what is served first, then what could be."""
        served = self._engine.embedder.backbones
        names = list(served)
        if not request.served_only:
            known = await self._engine.workers.run(registry.known_names)  # imports torchvision the first time
            names += [name for name in known if name not in served]
        size = self._limits.page(request.page_size)
        start = _offset(request.page_token)
        page = names[start : start + size]
        return epb.ListBackbonesResponse(
            backbones=[self._describe(name) for name in page],
            next_page_token=str(start + size) if start + size < len(names) else "",
        )

    def _describe(self, name: str) -> epb.BackboneInfo:
        backbone = self._engine.embedder.backbones.get(name)
        if backbone is None:
            return epb.BackboneInfo(name=name)
        space = backbone.space(backbone.ref())
        return epb.BackboneInfo(
            name=name,
            served=True,
            space=convert.space_to(space) if space else None,
            device=backbone.device,
            precision=backbone.precision,
            execution=self._engine.embedder.execution(backbone.ref()),
            layers=backbone.layers,
            input_size=backbone.preprocessing.crop,
        )

    async def GetServerInfo(
        self,
        request: epb.GetServerInfoRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> epb.GetServerInfoResponse:
        """Say what clients must know to cut their requests."""
        name, backbone = next(iter(self._engine.embedder.backbones.items()))
        limits = self._limits
        return epb.GetServerInfoResponse(
            version=self._version,
            limits=epb.Limits(
                max_message_bytes=limits.max_message_bytes,
                max_items=limits.max_items,
                max_image_bytes=limits.max_image_bytes,
                max_pixels=limits.max_pixels,
                max_k=limits.max_k,
                stream_window=limits.stream_window,
                max_hits=limits.max_hits,
            ),
            default_backbone=name,
            device=backbone.device,
            uptime_s=time.monotonic() - self._started,
        )


def _offset(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit() or len(token) > 9:  # noqa: PLR2004  # a small number
        raise InvalidArgument("page_token: pass the next_page_token of the page before, unchanged")
    return int(token)
