"""Killed in the middle of what takes long: a training, an export. There is what was, or the whole of what is new."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from likewise import Client, errors
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from support.server import ServerProcess, clean_environment, start_server
from support.waiting import PATIENCE_S, until

DIM, ITEMS = 8, 2500
# While there is a file `hold` beside the data, what has been fitted is not given back.
FITS = """
import os, time
from likewise_server import heads
train = heads.train
def watched(*arguments, **options):
    head = train(*arguments, **options)
    while os.path.exists("hold"):
        open("held", "w").close()
        time.sleep(0.01)
    return head
heads.train = watched
"""
# An export in a process of its own, which stands still in the middle of the second page while there is a file `hold`.
EXPORTS = """
import os, sys, time
from likewise import Client, export
vector = export._vector
def watched(item):
    while item.id == "1500" and os.path.exists("hold"):
        open("held", "w").close()
        time.sleep(0.01)
    return vector(item)
export._vector = watched
with Client(sys.argv[1], retries=0) as client:
    print(client.collection("points").export(sys.argv[2], progress=False))
"""


def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)


def filled(client: Client) -> None:
    labels = [f"class {number % 5}" for number in range(ITEMS)]
    client.create_collection("points", dim=DIM).add_vectors([str(n) for n in range(ITEMS)], points(), labels=labels)


def test_a_killed_training_leaves_the_version_before_and_can_be_asked_for_again(tmp_path: Path) -> None:
    request = hpb.TrainHeadRequest(collection="points", name="kinds", kind="ncm", request_id="once")
    told: list[str] = []

    def ask(address: str) -> hpb.TrainHeadResponse:
        with grpc.insecure_channel(address) as channel:
            reply: hpb.TrainHeadResponse = HeadServiceStub(channel).TrainHead(request, timeout=PATIENCE_S)
            return reply

    def lost(address: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            ask(address)
        told.append(caught.value.code().name)

    with start_server(tmp_path / "data", plant=FITS) as server:
        with Client(server.address) as client:
            filled(client)
            assert client.collection("points").train_head("kinds", kind="ncm").version == 1
        (tmp_path / "hold").touch()
        asking = threading.Thread(target=lost, args=(server.address,))
        asking.start()
        until((tmp_path / "held").exists)
        server.kill()
        asking.join(PATIENCE_S)
        assert told == ["UNAVAILABLE"]
    (tmp_path / "hold").unlink()
    with start_server(tmp_path / "data") as again, Client(again.address) as client:
        collection = client.collection("points")
        assert [head.version for head in collection.heads()] == [1]
        assert [ask(again.address).head.version for _ in range(2)] == [2, 2]
        first, second = (collection.classify(vectors=points()[:50], head="kinds", version=v) for v in (1, 2))
        assert [p.probabilities for p in first] == [p.probabilities for p in second]
        assert again.stop() == 0


class Exports:
    """Exports of the collection into each format, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.targets = [folder / "matrix" / "all.npy", folder / "table" / "all.parquet"]
        for target in self.targets:
            target.parent.mkdir()

    def begin(self, server: ServerProcess) -> list[subprocess.Popen[str]]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": clean_environment()}
        command = [sys.executable, "-c", EXPORTS, server.address]
        return [subprocess.Popen([*command, target], cwd=target.parent, **pipes) for target in self.targets]

    def killed(self, server: ServerProcess, victim: str) -> None:
        for target in self.targets:
            (target.parent / "hold").touch()
        processes = self.begin(server)
        until(lambda: all((target.parent / "held").exists() for target in self.targets))
        for each in processes if victim == "client" else [server]:
            each.kill()
        for target, process in zip(self.targets, processes, strict=True):
            (target.parent / "hold").unlink()
            said = process.communicate(timeout=PATIENCE_S)[1]
            assert process.returncode != 0
            assert victim == "client" or errors.Unavailable.__name__ in said
            assert not target.exists()

    def whole(self, server: ServerProcess) -> None:
        for process in self.begin(server):
            assert process.communicate(timeout=PATIENCE_S)[0].strip() == str(ITEMS)
        matrix, table = self.targets
        rows = np.load(matrix)
        np.testing.assert_array_equal(rows[np.lexsort(rows.T)], points()[np.lexsort(points().T)])
        assert table.stat().st_size > points().nbytes
        assert not [path for target in self.targets for path in target.parent.glob("*.partial")]


@pytest.mark.parametrize("victim", ["client", "server"])
def test_a_killed_export_leaves_nothing_that_looks_complete(tmp_path: Path, victim: str) -> None:
    exports = Exports(tmp_path)
    with start_server(tmp_path / "data") as server:
        with Client(server.address) as client:
            filled(client)
        exports.killed(server, victim)
        if victim == "client":
            exports.whole(server)
    if victim == "server":
        with start_server(tmp_path / "data") as again:
            exports.whole(again)
