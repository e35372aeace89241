"""AsyncClient: images in, vectors out, and the way to collections. `Client` is the same, blocking."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterable, Iterable, Sequence, Sized
from types import TracebackType
from typing import Any, Self

import numpy as np

from likewise import convert
from likewise.chunks import cut, in_flight, prepared
from likewise.collection import AsyncCollection
from likewise.errors import AlreadyExists, InvalidArgument, LikewiseError, NotFound, PermissionDenied
from likewise.images import ImageLike, encoded, weight
from likewise.progress import bar
from likewise.ranking import RankingCalls
from likewise.requests import several, text, whole
from likewise.results import BackboneInfo, CollectionInfo, Embeddings, Float32, Limits, ServerInfo
from likewise.security import Security
from likewise.transport import Transport, error_from
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub

DEFAULT_ADDRESS = "localhost:50051"


class AsyncClient(RankingCalls):
    """A connection to a likewise server. Use it on one event loop, and as a context manager.

    `timeout`: seconds one request may take, its retries included. `retries`: how often a request is
    tried again when the server is away or overloaded. `window`: requests in flight at once.

    `ca`: PEM file of the server's authority, or "public": use TLS. `cert`, `key`: PEM files of a certificate, where
    the server wants one. `token`: who calls. What is None comes from LIKEWISE_CA, LIKEWISE_CERT, LIKEWISE_KEY,
    LIKEWISE_TOKEN or the file LIKEWISE_TOKEN_FILE; "" is none. `insecure`: send the token to other machines also
    without TLS. Raises InvalidArgument and NotFound for what does not go together or cannot be read.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        window: int = 4,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        insecure: bool | None = None,
    ) -> None:
        security = Security.of(address, ca=ca, cert=cert, key=key, token=token, insecure=insecure)
        self._transport = Transport(address, timeout=timeout, retries=retries, security=security)
        self._window = window
        self._embedding: Any = EmbeddingServiceStub(self._transport.channel)
        self._collections: Any = CollectionServiceStub(self._transport.channel)
        self._heads: Any = HeadServiceStub(self._transport.channel)
        self._info: ServerInfo | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def info(self) -> ServerInfo:
        """Return who answers, and its limits."""
        reply = await self._transport.unary(self._embedding.GetServerInfo, epb.GetServerInfoRequest())
        self._info = convert.server_info(reply)
        return self._info

    async def backbones(self, *, served_only: bool = False) -> list[BackboneInfo]:
        """Return the backbones the server serves, then (unless `served_only`) those it could."""
        found: list[BackboneInfo] = []
        token = ""
        while True:
            request = epb.ListBackbonesRequest(page_token=token, served_only=served_only)
            reply = await self._transport.unary(self._embedding.ListBackbones, request)
            found += map(convert.backbone, reply.backbones)
            token = reply.next_page_token
            if not token:
                return found

    async def embed(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        backbone: str | None = None,
        *,
        layer: str = "",
        pooling: str = "",
        dtype: str = "float32",
        progress: bool | None = None,
    ) -> Embeddings:
        """Return one vector per image (paths, bytes, PIL images, arrays, tensors), in order.

        `backbone`: one the server serves, by default its first; `layer` and `pooling` choose another
        feature. `dtype="float16"` halves the reply, at the price of precision. What is wrong with one
        image stands in `.errors` under its index; errors of the whole call are raised.
        """
        images = several(images, "images")
        limits = await self._limits()
        ref = convert.backbone_ref(backbone, layer, pooling)
        if dtype not in ("float32", "float16"):
            raise InvalidArgument(f"dtype is {dtype!r}: use float32 or float16")
        wire = pb.DTYPE_FLOAT16 if dtype == "float16" else pb.DTYPE_FLOAT32
        errors: dict[int, LikewiseError] = {}
        rows: dict[int, Float32] = {}
        result = Embeddings(np.zeros((0, 0), np.float32), errors, "", "")
        total = len(images) if isinstance(images, Sized) else None
        count = 0

        def read(image: ImageLike) -> bytes | LikewiseError:
            return encoded(image, limits.max_image_bytes)

        async def request(chunk: list[bytes | LikewiseError]) -> epb.EmbedResponse | None:
            sound = [pb.Image(data=data) for data in chunk if isinstance(data, bytes)]
            if not sound:
                return None
            message = epb.EmbedRequest(backbone=ref, images=sound, dtype=wire)
            reply: epb.EmbedResponse = await self._transport.unary(self._embedding.Embed, message)
            return reply

        chunks = cut(prepared(images, read), weight, limits)
        with bar("embedding", total, wanted=progress) as advance:
            async for chunk, reply in in_flight(chunks, request, self._window):
                indices = [count + i for i, data in enumerate(chunk) if isinstance(data, bytes)]
                errors.update({count + i: data for i, data in enumerate(chunk) if isinstance(data, LikewiseError)})
                count += len(chunk)
                advance(len(chunk))
                if reply is None:
                    continue
                vectors = convert.matrix(reply.vectors)
                rows.update(zip(indices, vectors, strict=True))
                errors.update({indices[e.index]: error_from(e.status) for e in reply.errors})
                result.timings.append(convert.timings(reply.timings))
                fingerprint, name = reply.space.fingerprint, convert.backbone_name(reply.space)
                result = Embeddings(result.vectors, errors, fingerprint, name, result.timings)
        dim = len(next(iter(rows.values()))) if rows else 0
        matrix = np.zeros((count, dim), np.float32)
        for index, row in rows.items():
            matrix[index] = row
        return Embeddings(matrix, errors, result.fingerprint, result.backbone, result.timings)

    async def create_collection(
        self,
        name: str,
        backbone: str | None = None,
        *,
        layer: str = "",
        pooling: str = "",
        dim: int | None = None,
        metric: str = "cosine",
        exist_ok: bool = False,
        index: str = "auto",
        indexed: Sequence[str] = (),
        storage: str = "fp32",
    ) -> AsyncCollection:
        """Create a collection for images of a backbone (by default the server's first), or with
        `dim` for vectors from elsewhere.

        `metric` is cosine, dot or l2. With `exist_ok`, one of that name is returned as it is. `index` is auto
        (exact while that is quick, then approximate), exact, or a FAISS factory for those who know; `indexed` are
        attributes that filters find quickly; `storage`, fp32 or fp16, is the precision of the vectors that searches
        read. Raises AlreadyExists, InvalidArgument, NotFound.
        """  # noqa: D205  # one sentence needs two lines
        if metric not in convert.METRICS:
            raise InvalidArgument(f"metric is {metric!r}: use cosine, dot or l2")
        if dim is not None and backbone:
            raise InvalidArgument("give a backbone, or dim for vectors from elsewhere, not both")
        if storage not in convert.STORAGES:
            raise InvalidArgument(f"storage is {storage!r}: use fp32 or fp16")
        request = cpb.CreateCollectionRequest(
            name=name,
            metric=convert.METRICS[metric],
            request_id=uuid.uuid4().hex,
            index=index,
            indexed_attributes=[text(attribute, "attribute") for attribute in several(indexed, "indexed")],
            storage=convert.STORAGES[storage],
        )
        if dim is not None:
            request.dim = whole(dim, "dim")
        else:
            request.backbone.CopyFrom(convert.backbone_ref(backbone, layer, pooling))
        try:
            reply = await self._transport.unary(self._collections.CreateCollection, request)
        except (AlreadyExists, PermissionDenied) as error:
            if not exist_ok:
                raise
            try:  # also where the token may use it, but not make it
                return await self.collection(name)
            except NotFound:
                raise error from None
        return self._collection(convert.collection(reply.collection))

    async def collection(self, name: str) -> AsyncCollection:
        """Return a collection that exists. Raises NotFound."""
        request = cpb.GetCollectionRequest(name=name)
        reply = await self._transport.unary(self._collections.GetCollection, request)
        return self._collection(convert.collection(reply.collection))

    async def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        found: list[CollectionInfo] = []
        token = ""
        while True:
            request = cpb.ListCollectionsRequest(page_token=token)
            reply = await self._transport.unary(self._collections.ListCollections, request)
            found += map(convert.collection, reply.collections)
            token = reply.next_page_token
            if not token:
                return found

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with its items and heads. Raises NotFound."""
        request = cpb.DeleteCollectionRequest(name=name, request_id=uuid.uuid4().hex)
        await self._transport.unary(self._collections.DeleteCollection, request, gone_is_done=True)

    def _collection(self, info: CollectionInfo) -> AsyncCollection:
        return AsyncCollection(self._transport, info, self._limits, self._window)

    async def _limits(self) -> Limits:
        return (self._info or await self.info()).limits
