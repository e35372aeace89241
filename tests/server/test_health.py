"""grpc.health.v1 tells the truth: each thing that can fail is made to fail, and is mended where that is possible."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from likewise import Client, errors
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server.app import Running
from likewise_server.backbones.backbone import Backbone
from likewise_server.engine import health
from likewise_server.pipeline import batcher, devices
from likewise_server.readiness import COLLECTIONS, EMBEDDING, HEADS
from likewise_server.store import schema
from support.fakes import Valve
from support.pictures import photograph_jpegs
from support.server import ServerProcess, serving, start_server
from support.waiting import PATIENCE_S

ALL = {"": True, EMBEDDING: True, COLLECTIONS: True, HEADS: True}
NO_EMBEDDING = ALL | {"": False, EMBEDDING: False}
NO_WRITING = ALL | {"": False, COLLECTIONS: False, HEADS: False}


class Asked:
    """A server in this process, and its health as it tells it."""

    def __init__(self, running: Running, channel: grpc.aio.Channel) -> None:
        self.running = running
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._embedding: Any = EmbeddingServiceStub(channel)

    async def tells(self) -> dict[str, bool]:
        replies = {
            service: await self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            for service in ALL
        }
        return {service: reply.status == health_pb2.HealthCheckResponse.SERVING for service, reply in replies.items()}

    async def comes_to(self, expected: dict[str, bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while (found := await self.tells()) != expected:
            assert time.monotonic() < end, f"it says {found}"
            await asyncio.sleep(0.05)

    async def embed(self) -> int:
        """Return how many of one image have a vector."""
        request = epb.EmbedRequest(images=[pb.Image(data=photograph_jpegs()[0])])
        return 1 - len((await self._embedding.Embed(request, timeout=PATIENCE_S)).errors)


@asynccontextmanager
async def asked(data: Path, **settings: Any) -> AsyncIterator[Asked]:
    address = "127.0.0.1:{}"
    async with (
        serving(data, device="cpu:0", cache_bytes=0, **settings) as running,
        grpc.aio.insecure_channel(address.format(running.port)) as channel,
    ):
        server = Asked(running, channel)
        assert await server.tells() == ALL
        yield server


@pytest.fixture
def words(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All that was logged so far."""
    said: list[str] = []

    def read() -> str:
        said.extend(capsys.readouterr())
        return "".join(said) + caplog.text

    return read


async def test_forwards_that_fail_and_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Callable[[], str]
) -> None:
    async with asked(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "launch", _broken)
            for _ in range(devices.HOPELESS):
                assert await server.embed() == 0
            await server.comes_to(NO_EMBEDDING)
            assert f"the last {devices.HOPELESS}" in words()
        await server.comes_to(ALL)  # though nobody asks for an embedding
        assert "serving again" in words()
        assert await server.embed() == 1


def _broken(*_: object) -> None:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("where", ["decoder", "device"])
async def test_work_that_hangs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Callable[[], str], where: str
) -> None:
    monkeypatch.setattr(batcher if where == "decoder" else devices, "STALLED_S", 0.2)
    async with asked(tmp_path) as server:
        valve = Valve()
        valve.shut()
        decoders = server.running.engine.batcher._decoders
        decode, launch = decoders._decode, Backbone.launch

        def held(*arguments: Any) -> Any:
            valve.pass_through()
            return launch(*arguments) if where == "device" else decode(*arguments)

        if where == "device":
            monkeypatch.setattr(Backbone, "launch", held)
        else:
            held.at_once, held.close = 1, decode.close  # type: ignore[attr-defined]
            monkeypatch.setattr(decoders, "_decode", held)
        embedding = asyncio.create_task(server.embed())
        await server.comes_to(NO_EMBEDDING)
        assert ("come out of the queues" if where == "decoder" else "busy with one batch") in words()
        valve.open()
        assert await embedding == 1
        await server.comes_to(ALL)


async def test_a_device_thread_that_dies_begins_again_and_the_server_serves(
    tmp_path: Path, words: Callable[[], str]
) -> None:
    async with asked(tmp_path) as server:
        server.running.engine.batcher.queues.call(0, _end_thread)
        assert await server.embed() == 1
        assert await server.tells() == ALL
        assert "likewise-device-0 died and begins again" in words()


async def test_a_writer_that_died_is_told_while_the_rest_serves(tmp_path: Path, words: Callable[[], str]) -> None:
    async with asked(tmp_path) as server:
        store: Any = server.running.engine.store
        with pytest.raises(Exception, match="Restart the server"):
            await asyncio.to_thread(store._writer.call, lambda _db: _end_thread())
        await server.comes_to(NO_WRITING)
        assert "the writer has stopped" in words()
        assert await server.embed() == 1


def _end_thread() -> None:
    raise SystemExit


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have writing tried as often as health is told."""
    monkeypatch.setattr(health, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(health, "WRITE_AGAIN_S", 0.0)


@pytest.mark.usefixtures("often")
async def test_a_disk_that_is_nearly_full_and_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Callable[[], str]
) -> None:
    async with asked(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr("likewise_server.store.schema.shutil.disk_usage", lambda _: SimpleNamespace(free=5 * 2**20))
            await server.comes_to(NO_WRITING)
            assert "Only 5 MiB are free" in words()
            assert await server.embed() == 1
        await server.comes_to(ALL)


@pytest.mark.usefixtures("often")
async def test_a_write_that_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Callable[[], str]
) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.05)
    monkeypatch.setattr(health, "WRITE_LATE_S", 0.2)
    valve = Valve()

    def held(_: sqlite3.Connection) -> None:
        valve.pass_through()

    async with asked(tmp_path) as server:
        monkeypatch.setattr(schema, "touch", held)
        valve.shut()
        try:
            await server.comes_to(NO_WRITING)
            assert "has not come back" in words()
            assert await server.embed() == 1
        finally:
            valve.open()
        await server.comes_to(ALL)


async def test_a_server_that_cannot_look_at_itself_does_not_claim_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asked(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.running.engine.batcher, "trouble", _broken)
            await server.comes_to(dict.fromkeys(ALL, False))
        await server.comes_to(ALL)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    with start_server(tmp_path / "data") as started:
        yield started


def test_a_disk_that_takes_no_more_and_takes_it_again(process: ServerProcess) -> None:
    """The kernel refuses the server's writes beyond a size of file, as a full disk or a broken one would."""
    with grpc.insecure_channel(process.address) as channel, Client(process.address, retries=0) as client:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        def tells() -> dict[str, bool]:
            return {name: stub.Check(health_pb2.HealthCheckRequest(service=name)).status == 1 for name in ALL}

        def comes_to(expected: dict[str, bool]) -> None:
            end = time.monotonic() + PATIENCE_S
            while (found := tells()) != expected:
                assert time.monotonic() < end, f"it says {found}"
                time.sleep(0.05)

        vectors = np.random.default_rng(0).normal(size=(2000, 256)).astype(np.float32)
        points = client.create_collection("points", dim=256)
        points.add_vectors([str(n) for n in range(2000)], vectors)  # the log is long now
        before = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (2**19, before[1]))
        with pytest.raises((errors.Unavailable, errors.ResourceExhausted), match="disk"):
            points.add_vectors(["new"], vectors[:1])
        comes_to(NO_WRITING)
        assert len(client.embed(photograph_jpegs()[:1]).vectors) == 1
        assert points.search(vector=vectors[7], k=1)[0].id == "7"
        assert "not serving" in process.log.read_text()
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, before)
        comes_to(ALL)
        assert points.add_vectors(["new"], vectors[:1])[0].status == "created"
        assert points.count() == 2001
    assert process.stop() == 0
