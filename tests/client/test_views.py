"""Several looks at each picture, asked for through the client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from likewise.errors import InvalidArgument
from likewise.sync import Collection
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from support.pictures import digit_images
from support.server import ServerProcess, clean_environment


@pytest.mark.parametrize("views", ["flip", "crops"])
def test_heads_learn_from_and_classify_by_several_looks(collection: Collection, views: str) -> None:
    images, labels = digit_images(5, classes=3)
    plain = collection.train_head("plain", "ncm", images=images, labels=labels)
    looked = collection.train_head("looked", "ncm", images=images, labels=labels, views=views)
    assert plain.fingerprint == looked.fingerprint
    queries = digit_images(8, classes=3)[0][5:8]
    once = [answer.probabilities for answer in collection.classify(queries, head="looked")]
    again = [answer.probabilities for answer in collection.classify(queries, head="looked", views=views)]
    assert [list(answer) for answer in once] == [list(answer) for answer in again]
    assert not np.allclose([[*answer.values()] for answer in once], [[*answer.values()] for answer in again])
    # What it was trained on is as near as can be, by the same looks only.
    nearest = collection.classify(images[:1], head="looked", views=views, neighbours=1)[0]
    assert nearest.neighbours[0].similarity == pytest.approx(1, abs=1e-4)
    assert nearest.best == labels[0]
    assert collection.classify(images[:1], head="looked", neighbours=1)[0].neighbours[0].similarity < 0.9999


def test_a_bad_image_is_its_own_error(collection: Collection) -> None:
    images, labels = digit_images(2, classes=2)
    collection.train_head("digits", "ncm", images=images, labels=labels, views="flip")
    good, bad, other = collection.classify([images[0], b"no image", images[3]], head="digits", views="flip")
    assert isinstance(bad.error, InvalidArgument)
    assert (good.best, other.best) == ("0", "1")


def test_examples_are_added_by_the_looks_asked_for(collection: Collection) -> None:
    images, labels = digit_images(3, classes=2)
    options: dict[str, Any] = {"views": "crops"}
    collection.train_head("digits", "ncm", images=images[:5], labels=labels[:5], ids=list("abcde"), **options)
    collection.update_head("digits", images=images[5:], labels=labels[5:], ids=["f"], **options)
    [answer] = collection.classify(images[5:], head="digits", neighbours=1, **options)
    assert answer.neighbours[0].id == "f"
    assert answer.neighbours[0].similarity == pytest.approx(1, abs=1e-4)


def test_views_without_images_and_unknown_ones_are_told(collection: Collection) -> None:
    images, labels = digit_images(2, classes=2)
    with pytest.raises(InvalidArgument, match="use flip"):
        collection.train_head("digits", images=images, labels=labels, views="sideways")
    with pytest.raises(InvalidArgument, match="none are given"):
        collection.train_head("digits", views="flip")
    with pytest.raises(InvalidArgument, match="none are given"):
        collection.classify(vectors=np.ones((1, 512)), head="digits", views="flip")


def test_the_server_refuses_them_too(server: ServerProcess, collection: Collection) -> None:
    vector = np.ones(512, "<f4").tobytes()
    ids = pb.IdList(ids=["a"])
    fields: dict[str, Any] = {"collection": collection.name, "fingerprint": collection.fingerprint}
    examples = [hpb.Example(label="a", vector=vector)]
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = HeadServiceStub(channel)
        asked: list[tuple[Any, Any, str]] = [
            (
                stub.TrainHead,
                hpb.TrainHeadRequest(name="h", examples=examples, views=hpb.VIEWS_FLIP, **fields),
                "looks at",
            ),
            (stub.TrainHead, hpb.TrainHeadRequest(name="h", views=7, **fields), "unknown views"),  # type: ignore[arg-type]
            (stub.Classify, hpb.ClassifyRequest(head="h", ids=ids, views=hpb.VIEWS_CROPS, **fields), "looks at"),
        ]
        for call, request, words in asked:
            with pytest.raises(grpc.RpcError, match=words) as raised:
                call(request)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_files_are_classified_by_several_looks_on_the_command_line(
    server: ServerProcess, collection: Collection, tmp_path: Path
) -> None:
    images, labels = digit_images(3, classes=2)
    collection.train_head("digits", "ncm", images=images, labels=labels, views="crops")
    (tmp_path / "digit.png").write_bytes(images[0])
    command = [sys.executable, "-m", "likewise.cli", "classify", "-c", collection.name, "-h", "digits", "digit.png"]
    environment = {**clean_environment(), "LIKEWISE_SERVER": server.address}
    found = []
    for options in ([], ["--views", "crops"]):
        done = subprocess.run(
            [*command, *options, "--json"], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        found.append(json.loads(done.stdout)[0]["prediction"]["neighbours"][0]["similarity"])
    assert found[0] < 0.9999 < found[1]
