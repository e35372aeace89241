"""The guard around streams and quotas, in front of services that only answer: no network, no store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from likewise import AsyncClient
from likewise.errors import ResourceExhausted
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.collection_pb2_grpc import (
    CollectionServiceServicer,
    CollectionServiceStub,
    add_CollectionServiceServicer_to_server,
)
from likewise_proto.v1.embedding_pb2_grpc import (
    EmbeddingServiceServicer,
    EmbeddingServiceStub,
    add_EmbeddingServiceServicer_to_server,
)
from likewise_server import tokens
from likewise_server.audit import Audit
from likewise_server.servicers.guard import AccessInterceptor
from likewise_server.servicers.interceptor import CallInterceptor
from likewise_server.servicers.windows import as_ready, until
from support.access import bearer


class Echo(EmbeddingServiceServicer):
    """Answers at once, with the windows of the real one."""

    async def GetServerInfo(self, _request: Any, _context: Any) -> epb.GetServerInfoResponse:
        return epb.GetServerInfoResponse(version="echo")

    async def EmbedStream(self, requests: Any, _context: Any) -> AsyncIterator[epb.EmbedStreamResponse]:
        async def one(request: epb.EmbedStreamRequest) -> epb.EmbedStreamResponse:
            return epb.EmbedStreamResponse(item_id=request.item_id)

        async for reply in as_ready(until(requests, asyncio.Event()), one, 8, lambda _: 0, 0):
            yield reply


class Streams(CollectionServiceServicer):
    """Searches for duplicates for ever; stores whatever comes."""

    async def FindDuplicates(self, _request: Any, _context: Any) -> AsyncIterator[cpb.FindDuplicatesResponse]:
        while True:
            await asyncio.sleep(0.01)
            yield cpb.FindDuplicatesResponse()

    async def UpsertItems(self, requests: Any, _context: Any) -> AsyncIterator[cpb.UpsertItemsResponse]:
        async for request in requests:
            results = [cpb.UpsertResult(outcome=cpb.OUTCOME_CREATED) for _ in request.items]
            yield cpb.UpsertItemsResponse(results=results)


@asynccontextmanager
async def guarded(data: Path, *more: grpc.GenericRpcHandler, audit_bytes: int = 2**20) -> AsyncIterator[str]:
    """Serve the services above behind the guard, and yield the address."""
    audit = Audit(data, audit_bytes)
    guard = AccessInterceptor(tokens.Tokens(data), audit)
    server = grpc.aio.server(interceptors=[CallInterceptor(lambda *_: None), guard])
    add_EmbeddingServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]  # the others are not called
    add_CollectionServiceServicer_to_server(Streams(), server)  # type: ignore[abstract]
    server.add_generic_rpc_handlers(more)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        audit.close()


def audited(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / "audit.jsonl").read_text().splitlines()]


def stubs(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    return CollectionServiceStub(channel), EmbeddingServiceStub(channel)


async def failing(call: Any) -> grpc.aio.AioRpcError:
    async def whole() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole()
    return caught.value


@pytest.mark.parametrize("with_tokens", [False, True])
async def test_what_has_no_rule_is_refused(tmp_path: Path, with_tokens: bool) -> None:
    async def answer(_request: Any, _context: Any) -> epb.EmbedResponse:
        return epb.EmbedResponse()

    name = "likewise.v1.NewService"
    handler = grpc.method_handlers_generic_handler(name, {"New": grpc.unary_unary_rpc_method_handler(answer)})
    secret = tokens.create(tmp_path, "all", scopes=tokens.SCOPES) if with_tokens else None
    async with guarded(tmp_path, handler) as address, grpc.aio.insecure_channel(address) as channel:
        calls: Any = channel
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.unary_unary(f"/{name}/New")(b"", metadata=bearer(secret))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # what is not there at all
            await calls.unary_unary(f"/{name}/Other")(b"", metadata=bearer(secret))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_revoking_ends_open_streams_in_both_directions(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "all", scopes=tokens.SCOPES)
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        items, images = stubs(channel)
        coming = items.FindDuplicates(cpb.FindDuplicatesRequest(), metadata=bearer(secret))
        going = images.EmbedStream(metadata=bearer(secret))
        await going.write(epb.EmbedStreamRequest(item_id=1))
        assert (await going.read()).item_id == 1
        await coming.read()
        tokens.revoke(tmp_path, "all")
        await asyncio.sleep(2 * tokens.LOOK_S)
        await going.write(epb.EmbedStreamRequest(item_id=2))
        for call in (coming, going):
            error = await asyncio.wait_for(failing(call), 5)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "revoked" in str(error.details())


async def test_the_first_token_ends_streams_without_one(tmp_path: Path) -> None:
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        call = stubs(channel)[0].FindDuplicates(cpb.FindDuplicatesRequest())
        await call.read()
        tokens.create(tmp_path, "all", scopes=tokens.SCOPES)
        error = await asyncio.wait_for(failing(call), 5)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        tokens.revoke(tmp_path, "all")  # without a token left nobody comes in
        await asyncio.sleep(2 * tokens.LOOK_S)
        async with AsyncClient(address) as lw:
            with pytest.raises(Exception, match="needs a token"):
                await lw.info()


async def test_calls_over_the_quota_are_told_when_to_come_back(tmp_path: Path) -> None:
    slow = tokens.create(tmp_path, "slow", scopes=["embed"], requests_per_s=0.5)
    free = tokens.create(tmp_path, "free", scopes=["embed"])
    async with guarded(tmp_path) as address:
        async with AsyncClient(address, token=slow, retries=0) as lw, AsyncClient(address, token=free) as other:
            await lw.info()
            with pytest.raises(ResourceExhausted, match="'slow' is over its quota of requests") as caught:
                await lw.info()
            assert caught.value.retry_after_s is not None
            assert 0 < caught.value.retry_after_s <= 2
            await other.info()  # nobody else is held up
            await other.info()
        async with AsyncClient(address, token=slow, retries=5) as patient:
            assert (await patient.info()).version == "echo"  # comes back by itself
    assert {(line["who"], line["code"]) for line in audited(tmp_path)} == {("slow", "RESOURCE_EXHAUSTED")}


async def test_bytes_are_counted_and_a_large_message_is_paid_back(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "thin", scopes=["write"], bytes_per_s=100_000)
    large = cpb.UpsertItemsRequest(collection="c", items=[cpb.UpsertItem(vector=bytes(200_000))])
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        items, _ = stubs(channel)

        async def once() -> Any:
            return await items.UpsertItems(iter([large]), metadata=bearer(secret)).read()

        assert len((await once()).results) == 1  # more than a second's worth
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await once()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes" in str(caught.value.details())
        await asyncio.sleep(2.1)
        assert len((await once()).results) == 1


async def test_messages_of_a_stream_count_and_wait_for_their_turn(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "paced", scopes=["embed"], requests_per_s=20)
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        _, images = stubs(channel)
        messages = [epb.EmbedStreamRequest(item_id=number) for number in range(30)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = images.EmbedStream(iter(messages), metadata=bearer(secret))
        assert {reply.item_id async for reply in call} == set(range(30))
        assert loop.time() - began > 0.45  # 20 at once, then 20 a second: no machine is too slow for that


async def test_a_stream_that_begins_over_the_quota_is_refused(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "paced", scopes=["embed"], requests_per_s=0.01)
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        _, images = stubs(channel)
        first = images.EmbedStream(metadata=bearer(secret))
        await first.write(epb.EmbedStreamRequest(item_id=1))
        assert (await first.read()).item_id == 1
        second = images.EmbedStream(iter([epb.EmbedStreamRequest()]), metadata=bearer(secret))
        assert (await failing(second)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF


async def test_quotas_outlive_a_change_of_the_file(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "slow", scopes=["embed"], requests_per_s=0.01)
    async with guarded(tmp_path) as address, AsyncClient(address, token=secret, retries=0) as lw:
        await lw.info()
        tokens.create(tmp_path, "another", scopes=["embed"])
        await asyncio.sleep(2 * tokens.LOOK_S)
        with pytest.raises(ResourceExhausted):
            await lw.info()


async def test_audit_of_streams_and_of_knocking(tmp_path: Path) -> None:
    async with guarded(tmp_path) as address, grpc.aio.insecure_channel(address) as channel:
        stub, _ = stubs(channel)
        items = [cpb.UpsertItem(), cpb.UpsertItem()]
        messages = [cpb.UpsertItemsRequest(collection=name, items=items) for name in ("a", "", "b")]
        call = stub.UpsertItems(iter(messages))
        assert len([reply async for reply in call]) == 3
        going = stub.UpsertItems()
        await going.write(messages[0])
        await going.read()
        going.cancel()
        await asyncio.sleep(0.2)
        tokens.create(tmp_path, "all", scopes=tokens.SCOPES)
        await asyncio.sleep(2 * tokens.LOOK_S)
        for _ in range(50):
            await failing(stub.UpsertItems(iter(messages)))
    lines = audited(tmp_path)
    assert [(line["who"], line["collection"], line["count"]) for line in lines if "times" not in line] == [
        ("anonymous", "a, b", 6),
        ("anonymous", "a", 2),  # given up, but written
    ]
    knocks = [line for line in lines if "times" in line]
    assert sum(line["times"] for line in knocks) == 50
    assert len(knocks) < 25
    assert {line["code"] for line in knocks} == {"UNAUTHENTICATED"}
