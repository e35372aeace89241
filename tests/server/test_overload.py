"""More calls than there is room for, peers that vanish without a word, and background threads that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from likewise import Client
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server import app
from likewise_server.servicers.windows import as_ready
from likewise_server.store import NewItem, exact, maintenance, policy, shadow
from likewise_server.store.embedded import EmbeddedStore
from support import waiting
from support.fakes import Valve, until
from support.pictures import photograph_jpegs
from support.server import serving, start_server
from support.waiting import PATIENCE_S

DIM = 4


def hold(running: app.Running) -> Valve:
    """Have decoding wait at a valve, which is shut."""
    decoders: Any = running.engine.batcher._decoders
    decode, valve = decoders._decode, Valve()

    def held(*arguments: Any) -> Any:
        valve.pass_through()
        return decode(*arguments)

    held.at_once, held.close = 1, decode.close  # type: ignore[attr-defined]
    decoders._decode = held
    valve.shut()
    return valve


async def test_calls_over_the_most_are_told_to_come_back_and_health_is_answered(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, max_calls=2) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        valve = hold(running)
        stub: Any = EmbeddingServiceStub(channel)
        request = epb.EmbedRequest(images=[pb.Image(data=photograph_jpegs()[0])])
        try:
            calls = [stub.Embed(request, timeout=PATIENCE_S) for _ in range(2)]
            await until(lambda: running.engine.embedder.admission.held.items == 2)
            for method, message in ((stub.Embed, request), (stub.GetServerInfo, epb.GetServerInfoRequest())):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await method(message, timeout=PATIENCE_S)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                trailing: Any = refused.value.trailing_metadata()
                info = error_details_pb2.RetryInfo()
                details = status_pb2.Status.FromString(dict(trailing)["grpc-status-details-bin"]).details
                assert details[0].Unpack(info)
                assert info.retry_delay.ToNanoseconds() > 0
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)).status == 1
        finally:
            valve.open()
        for call in calls:
            assert not (await call).errors
        assert (await stub.GetServerInfo(epb.GetServerInfoRequest(), timeout=PATIENCE_S)).version


class Cable:
    """Carries what is sent to a server and back until it is cut, without either end being told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            for task in self._tasks:
                task.cancel()
            for writer in self._writers:
                writer.close()
            server.close()

    def cut(self) -> None:
        self._whole.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        for pair in ((reader, back), (there, writer)):
            self._tasks.append(asyncio.create_task(self._carry(*pair)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._whole.wait()
            writer.write(data)


async def test_a_peer_that_has_vanished_is_noticed_and_what_it_asked_for_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "KEEPALIVE_MS", 200)
    monkeypatch.setattr(app, "KEEPALIVE_TIMEOUT_MS", 200)
    async with serving(tmp_path) as running:
        cable, valve = Cable(running.port), hold(running)
        async with cable.laid() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = EmbeddingServiceStub(channel)
            images = [pb.Image(data=data) for data in photograph_jpegs()]
            call = stub.Embed(epb.EmbedRequest(images=images), timeout=3600)
            admission = running.engine.embedder.admission
            try:
                await until(lambda: admission.held.items == len(images))
                cable.cut()
                await until(lambda: admission.held.items == 0)
            finally:
                valve.open()
                call.cancel()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with EmbeddedStore(tmp_path / "data") as opened:
        opened.create_collection("c", dim=DIM, fingerprint="f")
        yield opened


def fill(store: EmbeddedStore, first: int, count: int) -> None:
    rows = np.random.default_rng(first).normal(size=(count, DIM)).astype(np.float32)
    store.upsert("c", [NewItem(f"{first + i}", row) for i, row in enumerate(rows)], fingerprint="f")


def test_a_segments_thread_that_dies_begins_again_and_builds(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(policy, "SHOWN_TO_ALL", 50)
    monkeypatch.setattr(maintenance, "QUIET_S", 0.05)
    deaths: list[int] = []

    def die(*_: object, **__: object) -> None:
        deaths.append(1)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(maintenance.Maintenance, "checkpoint", die)
        fill(store, 0, 60)
        waiting.until(lambda: deaths and store._maintenance._thread.deaths)
    assert "likewise-segments died and begins again" in caplog.text
    fill(store, 1000, 60)
    waiting.until(lambda: store.get_collection("c").bytes_by_part["segments"])
    assert len(store.search("c", np.ones((1, DIM), np.float32), 200).hits[0]) == 120


def test_a_shadow_thread_that_dies_begins_again_and_looks(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 0, 60)
    store._shadow._every_s = 0.0
    query, looked = np.ones((1, DIM), np.float32), list[float]()
    store.search("c", query, 5)
    index = store._indexes.peek(1)
    assert index is not None
    assert index.snapshot is not None
    found = exact.nearest([(part, part.alive) for part in index.snapshot.parts], query, 5, "cosine")
    offer = partial(store._shadow.offer, 1, index.snapshot, query, 5, "cosine", found)

    def die(_: object) -> float:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shadow, "recall_of", die)
        offer()
        waiting.until(lambda: store._shadow._thread.deaths)
    assert "likewise-shadow died and begins again" in caplog.text
    recall_of = shadow.recall_of

    def watched(question: Any) -> float:
        looked.append(recall_of(question))
        return looked[-1]

    monkeypatch.setattr(shadow, "recall_of", watched)
    offer()
    waiting.until(lambda: looked)
    assert looked == [1.0]


async def test_a_stream_reads_no_more_than_a_message_may_weigh_ahead_of_its_answers() -> None:
    open_, handled, most = asyncio.Event(), list[int](), 10

    async def requests() -> AsyncIterator[int]:
        for weight in (4, 4, 4, 50, 1, 1):
            yield weight

    async def handle(weight: int) -> int:
        handled.append(weight)
        await open_.wait()
        return weight

    replies = as_ready(requests(), handle, 100, lambda weight: weight, most)
    first = asyncio.ensure_future(anext(replies))
    await until(lambda: len(handled) == 2)
    await asyncio.sleep(0.05)
    assert handled == [4, 4], "the third waits outside"
    open_.set()
    assert [await first, *[reply async for reply in replies]] == [4, 4, 4, 50, 1, 1]
    assert handled == [4, 4, 4, 50, 1, 1]


def test_garbage_collections_leave_out_what_is_loaded(tmp_path: Path) -> None:
    """A full one goes through some 200,000 objects of torch otherwise, and everybody waits for that."""
    told = """
import gc
from likewise_server import app
stop = app.Running.stop
async def stopping(*arguments, **options):
    open("objects", "w").write(f"{gc.get_freeze_count()} {len(gc.get_objects())}")
    await stop(*arguments, **options)
app.Running.stop = stopping
"""
    with start_server(tmp_path / "data", plant=told) as server:
        with Client(server.address) as client:
            assert len(client.embed(photograph_jpegs()).vectors) == len(photograph_jpegs())
        assert server.stop() == 0
    frozen, looked_through = map(int, (tmp_path / "objects").read_text().split())
    assert frozen > 10 * looked_through
