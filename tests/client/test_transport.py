"""Retries, with a server that fails on purpose: a real gRPC server whose handler is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from likewise import AsyncClient
from likewise.errors import DeadlineExceeded, InvalidArgument, LikewiseError, ResourceExhausted, Unavailable
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server

Script = list[tuple[grpc.StatusCode, float | None]]


class Scripted(EmbeddingServiceServicer):
    """Fails as the script says, one entry a call, then answers."""

    def __init__(self) -> None:
        self.script: Script = []
        self.calls = 0
        self.delay = 0.0

    async def Embed(self, _request: Any, _context: Any) -> epb.EmbedResponse:
        return epb.EmbedResponse()

    async def EmbedStream(self, _requests: Any, _context: Any) -> AsyncIterator[epb.EmbedStreamResponse]:
        yield epb.EmbedStreamResponse()

    async def ListBackbones(self, _request: Any, _context: Any) -> epb.ListBackbonesResponse:
        return epb.ListBackbonesResponse()

    async def GetServerInfo(self, _request: Any, context: Any) -> epb.GetServerInfoResponse:
        self.calls += 1
        await asyncio.sleep(self.delay)
        if self.script:
            code, retry_after = self.script.pop(0)
            status = status_pb2.Status(code=code.value[0], message="scripted")
            if retry_after is not None:
                delay = Duration()
                delay.FromMilliseconds(int(retry_after * 1000))
                status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            trailing = (("x-request-id", "r-1"), ("grpc-status-details-bin", status.SerializeToString()))
            await context.abort(code, "scripted", trailing)
        return epb.GetServerInfoResponse(version="scripted")


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, Callable[..., AsyncClient]]]:
    servicer, server = Scripted(), grpc.aio.server()
    add_EmbeddingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clients: list[AsyncClient] = []

    def connect(**options: Any) -> AsyncClient:
        clients.append(AsyncClient(f"127.0.0.1:{port}", **options))
        return clients[-1]

    yield servicer, connect
    for client in clients:
        await client.close()
    await server.stop(None)


Fixture = tuple[Scripted, Callable[..., AsyncClient]]
BUSY, AWAY = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


async def test_what_may_pass_is_tried_again(scripted: Fixture) -> None:
    servicer, connect = scripted
    servicer.script = [(AWAY, None), (BUSY, 0.05), (AWAY, None)]
    assert (await connect().info()).version == "scripted"
    assert servicer.calls == 4


async def test_the_server_says_how_long_to_wait(scripted: Fixture) -> None:
    servicer, connect = scripted
    servicer.script = [(BUSY, 0.6)]
    loop = asyncio.get_running_loop()
    started = loop.time()
    await connect().info()
    assert loop.time() - started >= 0.4  # 0.6 s, less the jitter


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.INTERNAL, LikewiseError),
        (BUSY, ResourceExhausted),  # without RetryInfo: a message that is too large
    ],
)
async def test_what_cannot_pass_is_not_tried_again(
    scripted: Fixture, code: grpc.StatusCode, kind: type[LikewiseError]
) -> None:
    servicer, connect = scripted
    servicer.script = [(code, None)]
    with pytest.raises(kind, match="scripted") as caught:
        await connect().info()
    assert servicer.calls == 1
    assert caught.value.request_id == "r-1"


async def test_retries_end(scripted: Fixture) -> None:
    servicer, connect = scripted
    servicer.script = [(AWAY, None)] * 10
    with pytest.raises(Unavailable):
        await connect(retries=2).info()
    assert servicer.calls == 3


async def test_a_wait_beyond_the_deadline_is_not_begun(scripted: Fixture) -> None:
    servicer, connect = scripted
    servicer.script = [(BUSY, 30)]
    waited: Awaitable[Any] = connect(timeout=2).info()
    with pytest.raises(ResourceExhausted):
        await asyncio.wait_for(waited, 5)
    assert servicer.calls == 1


async def test_a_slow_server_meets_the_deadline(scripted: Fixture) -> None:
    servicer, connect = scripted
    servicer.delay = 5
    with pytest.raises(DeadlineExceeded):
        await connect(timeout=0.3).info()
