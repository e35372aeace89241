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

    def unary(self) -> bytes:
        """Return an EmbedRequest of the next picture."""
        return next(self._unary) + new_tag()

    def stream(self, item_id: int) -> bytes:
        """Return an EmbedStreamRequest. Two serialised messages end to end are one that has the fields of both."""
        return next(self._stream) + new_tag() + epb.EmbedStreamRequest(item_id=item_id).SerializeToString()


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


def check_stream(replies: Iterable[bytes], ids: set[int]) -> None:
    """Raise RuntimeError unless the replies are one good vector for each id."""
    for raw in replies:
        reply = epb.EmbedStreamResponse.FromString(raw)
        if reply.HasField("error"):
            raise RuntimeError(f"an image failed: {reply.error.message}")
        row(reply.vector)
        ids.remove(reply.item_id)
    if ids:
        raise RuntimeError(f"{len(ids)} images of the stream were not answered")


def row(matrix: pb.Matrix) -> NDArray[np.float32]:
    """Return the one vector of a reply. Raises RuntimeError if it is not there, or is not one."""
    vector = np.frombuffer(matrix.data, "<f4").astype(np.float32)
    if matrix.rows != 1 or not len(vector) or not np.isfinite(vector).all() or not vector.any():
        raise RuntimeError(f"a reply holds no good vector: {matrix.rows} rows, {len(vector)} values")
    return vector
