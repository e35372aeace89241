"""Decoding in processes: the same pixels and refusals as in threads, and a picture that crashes them costs itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server.errors import InvalidArgument, LikewiseError, OutOfRange, Unavailable
from likewise_server.images import LOOKS, ImageLimits, Preprocessing, guard
from likewise_server.pipeline import isolation
from likewise_server.pipeline.decoders import CpuDecode
from likewise_server.pipeline.isolation import IsolatedDecode
from support.pictures import photograph_jpegs, photographs, png
from support.planted import CRASH, HANG, RAISE
from support.server import serving, start_server
from support.waiting import until

LIMITS = ImageLimits(max_bytes=400_000, max_pixels=2_200_000)
HOW = Preprocessing(resize=64, crop=64)
TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 90.0
Making = Callable[..., IsolatedDecode]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes started that marked pictures harm."""
    monkeypatch.setattr(isolation, "COMMAND", (sys.executable, "-m", "support.planted"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def isolated() -> Iterator[Making]:
    made: list[IsolatedDecode] = []

    def make(workers: int = 1, timeout_s: float = PATIENCE_S) -> IsolatedDecode:
        guard(LIMITS)
        made.append(IsolatedDecode(LIMITS, "scaled", workers=workers, timeout_s=timeout_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


def outcome(found: object) -> object:
    return (type(found).__name__, str(found)) if isinstance(found, LikewiseError) else np.asarray(found).tobytes()


def children_of(parent: int, word: str = "") -> set[int]:
    """The processes that this one has started and that run, those with the word in their command."""
    tasks = Path(f"/proc/{parent}/task")
    found = {int(pid) for each in tasks.iterdir() for pid in (each / "children").read_text().split()}
    return {pid for pid in found if word in Path(f"/proc/{pid}/cmdline").read_text()}


def test_processes_give_what_threads_give(isolated: Making) -> None:
    decode = isolated(workers=2)
    pictures = [*photograph_jpegs()[:6], png(photographs()["coffee"].resize((90, 50))), b"", b"text", b"\xff\xd8\xff"]
    pictures += [photograph_jpegs()[0][:900], bytes(500_000), png(Image.new("RGB", (1500, 1500)))]
    plain = CpuDecode(LIMITS, "scaled")
    for views in LOOKS:
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(decode, [data], HOW, views) for data in pictures]
        for data, future in zip(pictures, both, strict=True):
            assert outcome(future.result()[0]) == outcome(plain([data], HOW, views)[0])
    assert [type(each) for each in decode(pictures[-2:], HOW, "")] == [OutOfRange, OutOfRange]


@pytest.mark.usefixtures("planted")
def test_a_crash_a_bug_and_a_hang_cost_one_image_and_one_process_each(isolated: Making) -> None:
    decode = isolated(timeout_s=4)
    good = photograph_jpegs()[0]
    expected = outcome(CpuDecode(LIMITS, "scaled")([good], HOW, "")[0])
    for mark, message in (
        (CRASH, "crashed its decoder (SIGSEGV)"),
        (RAISE, "crashed its decoder"),
        (HANG, "took over 4 s"),
    ):
        before = children_of(os.getpid())
        found, lost = decode([good, good + mark], HOW, "")
        assert outcome(found) == expected
        assert isinstance(lost, InvalidArgument)
        assert message in lost.message
        assert len(children_of(os.getpid()) - before) == 1
        assert len(children_of(os.getpid())) == len(before)
    assert outcome(decode([good], HOW, "")[0]) == expected


def test_a_process_that_does_not_start_is_nobodys_picture(isolated: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
        decode = isolated()
        found = decode([photograph_jpegs()[0]], HOW, "")[0]
        assert isinstance(found, Unavailable)
        # The one that was started in its place is as broken, and finds out in its turn.
    assert isinstance(decode([photograph_jpegs()[0]], HOW, "")[0], Unavailable)
    assert not isinstance(decode([photograph_jpegs()[0]], HOW, "")[0], LikewiseError)


def test_processes_end_when_asked_and_with_whoever_started_them(isolated: Making, tmp_path: Path) -> None:
    before = children_of(os.getpid())
    decode = isolated(workers=2)
    started = children_of(os.getpid()) - before
    assert len(started) == 2
    decode.close()
    assert not started & children_of(os.getpid())
    with start_server(tmp_path / "data", "--set", "decode_in=processes", "--set", "decode_threads=1") as server:
        workers = children_of(server.process.pid, "pipeline.isolated")
        assert len(workers) == 1
        server.kill()
        outlived = "a decoding process outlived the server"
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), outlived, within_s=PATIENCE_S)


@pytest.mark.usefixtures("planted")
async def test_a_server_goes_on_when_pictures_crash_its_decoders(tmp_path: Path) -> None:
    options = {"decode_in": "processes", "decode_threads": 1, "decode_timeout_s": 20, "cache_bytes": 0}
    async with (
        serving(tmp_path / "data", **options) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        embedding: Any = EmbeddingServiceStub(channel)
        good = photograph_jpegs()[:4]
        plain = await embedding.Embed(
            epb.EmbedRequest(images=[pb.Image(data=data) for data in good]), timeout=PATIENCE_S
        )
        mixed = [good[0], good[0] + CRASH, good[1], good[2], good[3]]
        request = epb.EmbedRequest(images=[pb.Image(data=data) for data in mixed])
        reply, other = await asyncio.gather(
            embedding.Embed(request, timeout=PATIENCE_S),
            embedding.Embed(epb.EmbedRequest(images=[pb.Image(data=good[3])]), timeout=PATIENCE_S),
        )
        assert [error.index for error in reply.errors] == [1]
        assert {error.status.code for error in reply.errors} == {int(InvalidArgument.code)}
        rows = np.frombuffer(reply.vectors.data, "<f4").reshape(5, -1)
        expected = np.frombuffer(plain.vectors.data, "<f4").reshape(4, -1)
        np.testing.assert_allclose(rows[[0, 2, 3, 4]], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(np.frombuffer(other.vectors.data, "<f4"), expected[3], rtol=1e-3, atol=1e-4)
        os.kill(next(iter(children_of(os.getpid(), "support.planted"))), signal.SIGKILL)  # and one by someone else
        for _ in range(2):
            again = await embedding.Embed(
                epb.EmbedRequest(images=[pb.Image(data=data) for data in good]), timeout=PATIENCE_S
            )
            assert len(again.errors) <= 1  # what the one that was killed had in hand, if anything
        assert not again.errors
