"""Raw calls: bytes in, bytes out, so that the generator of load leaves the cores to the server.

Requests are serialised once; what differs between messages is pasted behind. Replies are parsed after the clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from embedding.images import TAG, new_tag, tagged
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb

EMBED = "/likewise.v1.EmbeddingService/Embed"
EMBED_STREAM = "/likewise.v1.EmbeddingService/EmbedStream"


class Requests:
    """Serialised messages for the pictures in turn, no two with the same bytes."""

    def __init__(self, images: Sequence[bytes]) -> None:
        sent = [pb.Image(data=tagged(data)) for data in images]
        # The picture is each message's last field, so its tag is the message's last bytes.
        self._unary = itertools.cycle([epb.EmbedRequest(images=[i]).SerializeToString()[:-TAG] for i in sent])
        self._stream = itertools.cycle([epb.EmbedStreamRequest(image=i).SerializeToString()[:-TAG] for i in sent])
        self._among = itertools.cycle([epb.EmbedStreamRequest(images=[i]).SerializeToString()[:-TAG] for i in sent])

    def unary(self) -> bytes:
        """Return an EmbedRequest of the next picture."""
        return next(self._unary) + new_tag()

    def stream(self, item_id: int, count: int = 1) -> bytes:
        """Return an EmbedStreamRequest of the next `count` pictures.

        Serialised messages end to end are one that has the fields of all.
        """
        named = epb.EmbedStreamRequest(item_id=item_id).SerializeToString()
        if count == 1:
            return next(self._stream) + new_tag() + named
        return b"".join(next(self._among) + new_tag() for _ in range(count)) + named


def unary(channel: grpc.aio.Channel) -> Any:
    """Return Embed, of bytes."""
    return channel.unary_unary(EMBED)


def stream(channel: grpc.aio.Channel) -> Any:
    """Return EmbedStream, of bytes."""
    return channel.stream_stream(EMBED_STREAM)


def check_unary(replies: Iterable[bytes]) -> None:
    """Raise RuntimeError unless each reply holds one good vector."""
    for raw in replies:
        reply = epb.EmbedResponse.FromString(raw)
        if reply.errors:
            raise RuntimeError(f"an image failed: {reply.errors[0].status.message}")
        row(reply.vectors)


def check_stream(replies: Iterable[bytes], ids: set[int], count: int) -> None:
    """Raise RuntimeError unless the replies are `count` good vectors for each id."""
    for raw in replies:
        reply = epb.EmbedStreamResponse.FromString(raw)
        failed = [reply.error] if reply.HasField("error") else [error.status for error in reply.errors]
        if failed:
            raise RuntimeError(f"an image failed: {failed[0].message}")
        rows(reply.vector, count)
        ids.remove(reply.item_id)
    if ids:
        raise RuntimeError(f"{len(ids)} messages of the stream were not answered")


def row(matrix: pb.Matrix) -> NDArray[np.float32]:
    """Return the one vector of a reply. Raises RuntimeError if it is not there, or is not one."""
    return np.asarray(rows(matrix, 1)[0])


def rows(matrix: pb.Matrix, count: int) -> NDArray[np.float32]:
    """Return the `count` vectors of a reply. Raises RuntimeError if they are not there, or one is none."""
    values = np.frombuffer(matrix.data, "<f4").astype(np.float32)
    if matrix.rows != count or not len(values) or not np.isfinite(values).all():
        raise RuntimeError(f"a reply does not hold {count} good vectors: {matrix.rows} rows, {len(values)} values")
    vectors = values.reshape(count, -1)
    if not vectors.any(axis=1).all():
        raise RuntimeError(f"of the {count} vectors of a reply some are nothing but zeros")
    return vectors
