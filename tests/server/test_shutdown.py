"""Ends of every kind: asked for under load, while loading, twice, with work that hangs; and by a lost device."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from likewise import Client, errors
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from support.pictures import photograph_jpegs
from support.server import ServerProcess, launch_server, start_server
from support.waiting import PATIENCE_S, until

DIM = 8
# While there is a file `hold` beside the data, forwards wait; once there is one `break`, the device is lost.
FORWARDS = """
import os, time
from likewise_server.backbones.backbone import Backbone
launch = Backbone.launch
def watched(*arguments):
    if os.path.exists("break"):
        raise RuntimeError("CUDA error: device-side assert triggered")
    while os.path.exists("hold"):
        open("held", "w").close()
        time.sleep(0.01)
    return launch(*arguments)
Backbone.launch = watched
"""
# What would take long while loading takes for ever.
LOADING = """
import time
from likewise_server.backbones import registry
def load(*_, **__):
    open("loading", "w").close()
    time.sleep(600)
registry.load = load
"""
IMPORTING = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "likewise_server.app":
            open("loading", "w").close()
            time.sleep(600)
sys.meta_path.insert(0, Slow())
"""


@contextmanager
def embedding(server: ServerProcess) -> Iterator[tuple[grpc.Channel, Any]]:
    """A channel, and the answer to come to a call whose forward is held."""
    folder = server.data.parent
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = EmbeddingServiceStub(channel)
        (folder / "hold").touch()
        images = [pb.Image(data=data) for data in photograph_jpegs()]
        future = stub.Embed.future(epb.EmbedRequest(images=images), timeout=PATIENCE_S * 2)
        until((folder / "held").exists)
        yield channel, future


class Filling(threading.Thread):
    """Writes items one by one until the server does not take them; knows which were acknowledged."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(daemon=True)
        self._address, self._number = address, number
        self.acknowledged: list[str] = []

    def run(self) -> None:
        with Client(self._address, retries=0) as client:
            points = client.collection("points")
            while True:
                item_id = f"{self._number}-{len(self.acknowledged)}"
                try:
                    [outcome] = points.add_vectors([item_id], np.ones((1, DIM), np.float32))
                except errors.Unavailable:
                    return
                assert outcome.status == "created"
                self.acknowledged.append(item_id)


def test_under_load_it_is_not_ready_at_once_answers_what_it_accepted_and_loses_nothing(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", "--set", f"grace_s={PATIENCE_S}", plant=FORWARDS) as server:
        with Client(server.address) as client:
            client.create_collection("points", dim=DIM)
        fillers = [Filling(server.address, number) for number in range(4)]
        with embedding(server) as (channel, future):
            told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert next(told).status == health_pb2.HealthCheckResponse.SERVING
            for filler in fillers:
                filler.start()
            until(lambda: all(filler.acknowledged for filler in fillers))
            server.process.send_signal(signal.SIGTERM)
            assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not future.done()
            for filler in fillers:
                filler.join(PATIENCE_S)
                assert not filler.is_alive(), "writes were refused"
            assert list(told) == [], "the watch ends of itself"
            (tmp_path / "hold").unlink()
            reply = future.result(PATIENCE_S)
            assert reply.vectors.rows == len(photograph_jpegs())
            assert not reply.errors
        assert server.process.wait(PATIENCE_S * 2) == 0
    with start_server(tmp_path / "data") as again, Client(again.address) as client:
        points = client.collection("points")
        acknowledged = [item_id for filler in fillers for item_id in filler.acknowledged]
        assert all(points.get(acknowledged))
        assert points.count() >= len(acknowledged)
        assert again.stop() == 0


def test_work_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", "--set", "grace_s=0.5", plant=FORWARDS) as server:
        with embedding(server) as (_, future):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE_S) == 0
            assert future.exception(PATIENCE_S).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert "not everything has ended in time" in server.log.read_text()


def test_those_who_watch_its_health_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with (
        start_server(tmp_path / "data", "--set", "grace_s=600") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        services = ("", "likewise.v1.HeadService", "unheard of")
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=service)) for service in services]
        assert all(next(watch).status for watch in watches)
        assert server.stop() == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with (
        start_server(tmp_path / "data", "--set", "grace_s=600", plant=FORWARDS) as server,
        embedding(server),
    ):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in server.log.read_text())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("plant", "number", "status"),
    [(LOADING, signal.SIGTERM, 0), (LOADING, signal.SIGINT, 0), (IMPORTING, signal.SIGTERM, 128 + signal.SIGTERM)],
    ids=["loading", "loading-interrupted", "importing"],
)
def test_a_signal_while_it_loads_ends_it_and_leaves_the_data_to_the_next(
    tmp_path: Path, plant: str, number: int, status: int
) -> None:
    process, log = launch_server(tmp_path / "data", plant=plant)
    try:
        until((tmp_path / "loading").exists)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == status, log.read_text()
        assert process.communicate()[0] == "", "it never said that it is ready"
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
    subprocess.run(["flock", "--nonblock", tmp_path / "data" / "lock", "true"], check=True)


def test_a_device_that_is_lost_takes_the_server_down_with_its_reason(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", plant=FORWARDS) as server:
        with Client(server.address, retries=0) as client:
            points = client.create_collection("points", dim=DIM)
            points.add_vectors(["a"], np.ones((1, DIM), np.float32))
            assert len(client.embed(photograph_jpegs()[:1]).vectors) == 1
            (tmp_path / "break").touch()
            found = client.embed(photograph_jpegs()[:1]).errors
            assert isinstance(found[0], errors.Unavailable)
            assert "send it again" in str(found[0])
        assert server.process.wait(PATIENCE_S) == 1
        words = server.log.read_text()
        assert "not serving" in words
        assert "ended because only a new process can help" in words
        assert "device-side assert" in words
    (tmp_path / "break").unlink()
    with start_server(tmp_path / "data") as again, Client(again.address) as client:
        assert client.collection("points").count() == 1
        assert again.stop() == 0
