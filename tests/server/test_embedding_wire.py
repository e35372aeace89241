"""Embedding over the wire while the server is held: refusals, deadlines, cancellation, and what the metrics tell."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server.app import Running
from likewise_server.metrics import Metrics
from support.fakes import Valve, until
from support.pictures import photograph_jpegs
from support.server import serving


class Held:
    """A running server whose decoder can be held, and a stub of it."""

    def __init__(self, running: Running, stub: Any) -> None:
        self.running, self.stub = running, stub
        self.valve = Valve()
        self.decoded = 0
        decoders = running.engine.batcher._decoders
        self._decode = decoders._decode
        decoders._decode = self
        self.at_once = 1

    def __call__(self, images: Sequence[bytes], how: Any, views: Any) -> Any:
        self.decoded += len(images)
        self.valve.pass_through()
        return self._decode(images, how, views)

    def close(self) -> None:
        self._decode.close()

    @property
    def admission(self) -> Any:
        return self.running.engine.embedder.admission

    def embed(self, *images: bytes, timeout: float = 60) -> Any:
        return self.stub.Embed(epb.EmbedRequest(images=[pb.Image(data=data) for data in images]), timeout=timeout)


@asynccontextmanager
async def held(data: Path, **settings: Any) -> AsyncIterator[Held]:
    async with serving(data, **settings) as running, channel_to(running) as channel:
        server = Held(running, EmbeddingServiceStub(channel))
        try:
            yield server
        finally:
            server.valve.open()


def channel_to(running: Running) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{running.port}")


def rows(reply: epb.EmbedResponse) -> Any:
    return np.frombuffer(reply.vectors.data, "<f4").reshape(reply.vectors.rows, reply.vectors.cols)


@pytest.mark.parametrize(
    "settings",
    [{"queue_items": 2}, {"queue_pixels": 250_000}, {"queue_interactive": 2, "interactive_wait_s": 0.0}],
    ids=["items", "pixels", "interactive"],
)
async def test_over_the_budget_a_call_is_told_when_to_come_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    pictures = photograph_jpegs()
    async with held(tmp_path, cache_bytes=0, **settings) as server:
        server.valve.shut()
        first = server.embed(*pictures[:2])
        await until(lambda: server.admission.held.items == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.embed(pictures[2])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing: Any = refused.value.trailing_metadata()
        details = status_pb2.Status.FromString(dict(trailing)["grpc-status-details-bin"]).details
        info = error_details_pb2.RetryInfo()
        assert details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() > 0
        server.valve.open()
        assert not (await first).errors
        assert rows(await server.embed(pictures[2])).any()
        await until(lambda: server.admission.held.items == 0)
        assert server.decoded == 3, "what was refused cost nothing"


async def test_a_stream_longer_than_the_budget_waits_and_leaves_room_for_a_call(tmp_path: Path) -> None:
    pictures = photograph_jpegs()
    async with held(tmp_path, queue_items=8, cache_bytes=0) as server:
        server.valve.shut()

        async def requests() -> AsyncIterator[epb.EmbedStreamRequest]:
            for number in range(100):
                yield epb.EmbedStreamRequest(item_id=number, image=pb.Image(data=pictures[number % 16]))

        replies: list[epb.EmbedStreamResponse] = []

        async def read() -> None:
            async for reply in server.stub.EmbedStream(requests(), timeout=60):
                replies.append(reply)  # noqa: PERF401  # the others look at it meanwhile

        stream = asyncio.create_task(read())
        await until(lambda: server.admission.held.items == 6)
        call = server.embed(*pictures[:2])
        await until(lambda: server.admission.held.items == 8)
        server.valve.open()
        expected = rows(await call)
        assert len(replies) < 100, "the call did not wait for the stream"
        await stream
        assert sorted(reply.item_id for reply in replies) == list(range(100))
        assert not any(reply.HasField("error") for reply in replies)
        for reply in replies:
            if reply.item_id % 16 < 2:
                got = np.frombuffer(reply.vector.data, "<f4")
                np.testing.assert_allclose(got, expected[reply.item_id % 16], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("end", ["deadline", "cancel"])
async def test_images_nobody_waits_for_any_more_are_not_decoded(tmp_path: Path, end: str) -> None:
    pictures = photograph_jpegs()
    async with held(tmp_path, decode_threads=1, cache_bytes=0) as server:
        server.valve.shut()
        first = server.embed(pictures[0])
        await until(lambda: server.decoded == 1)
        call = server.embed(*pictures[1:9], timeout=0.3 if end == "deadline" else 60)
        await until(lambda: server.admission.held.items == 9)
        if end == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await call
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: server.admission.held.items == 1)
        server.valve.open()
        assert rows(await first).any()
        assert rows(await server.embed(pictures[9])).any()
        await until(lambda: server.admission.held.items == 0)
        assert server.decoded == 2
        assert server.running.engine.batcher.queues.waiting() == 0


async def test_the_metrics_page_tells_what_calls_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []
    serve = Metrics.serve

    def watched(self: Metrics, host: str, port: int) -> int:
        ports.append(serve(self, host, port))
        return ports[0]

    monkeypatch.setattr(Metrics, "serve", watched)
    pictures = photograph_jpegs()

    async def page() -> dict[str, float]:
        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics") as reply:
                text: str = reply.read().decode()
            return text

        found = re.findall(r"^(likewise_\S+) (\S+)$", await asyncio.to_thread(read), re.MULTILINE)
        return {name: float(value) for name, value in found}

    async with held(tmp_path, metrics_port=0, max_batch=4) as server:
        before = await page()
        assert before["likewise_admitted_images"] == before["likewise_cache_bytes"] == 0
        reply = await server.embed(*pictures, b"no image")
        assert [error.index for error in reply.errors] == [16]
        again = await server.embed(*pictures[:4])
        np.testing.assert_array_equal(rows(again), rows(reply)[:4])
        after = await page()
        assert after['likewise_calls_total{code="OK",method="EmbeddingService/Embed"}'] == 2
        assert after['likewise_images_total{backbone="likewise-tiny"}'] == 16, "each picture ran once"
        assert after['likewise_cache_lookups_total{outcome="hit"}'] == 4
        assert after['likewise_cache_lookups_total{outcome="miss"}'] == 17
        assert 16 * 512 * 4 < after["likewise_cache_bytes"] < 64 * 2**20
        assert after['likewise_batches_total{backbone="likewise-tiny",reason="full"}'] >= 1
        batches = sum(value for name, value in after.items() if name.startswith("likewise_batches_total"))
        assert batches == after['likewise_batch_size_count{backbone="likewise-tiny"}'] >= 4
        assert after['likewise_device_busy_seconds_total{device="cpu"}'] > 0
        idle = [name for name in after if name.startswith("likewise_device_idle_seconds_total")]
        assert idle
        assert all('device="cpu",reason="' in name for name in idle)
        assert after['likewise_stage_seconds_count{stage="decode_wait"}'] == 21
        assert after['likewise_stage_seconds_count{stage="decode"}'] == 17
        assert after['likewise_stage_seconds_count{stage="device_wait"}'] == 16
        assert after["likewise_images_per_second"] > 0

        server.valve.shut()
        call = server.embed(*pictures[:3], *(data + b" " for data in pictures[:3]))  # three are known, three are new
        await until(lambda: server.admission.held.items == 6)
        await until(lambda: server.running.engine.batcher.queues.waiting() <= 3)  # the known ones need no decoder
        busy = await page()
        assert busy["likewise_admitted_images"] == 6
        assert busy["likewise_admitted_bytes"] == 2 * sum(map(len, pictures[:3])) + 3
        assert busy["likewise_admitted_pixels"] > 6 * 100 * 100
        assert busy["likewise_queued_images"] <= 3
        server.valve.open()
        assert not (await call).errors
        await until(lambda: server.admission.held.items == 0)
        assert (await page())["likewise_admitted_images"] == 0


async def test_without_a_compiler_the_server_says_that_it_runs_eager(tmp_path: Path) -> None:
    async with held(tmp_path) as server:
        listed = await server.stub.ListBackbones(epb.ListBackbonesRequest(served_only=True))
        assert [(info.name, info.execution, info.device) for info in listed.backbones] == [
            ("likewise-tiny", "eager", "cpu")
        ]
        assert not (tmp_path / "compiled").exists()
