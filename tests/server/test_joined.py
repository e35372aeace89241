"""Several backbones as one: everywhere a backbone is named, side by side, in a space of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server import heads
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine import joined
from likewise_server.engine.admission import Admission, Cost
from likewise_server.engine.embedding import Embedder
from likewise_server.errors import Internal
from likewise_server.errors import InvalidArgument as Invalid
from likewise_server.pipeline.cache import EmbeddingCache
from support.backbones import JOINED, OTHER, write_weights
from support.fakes import BAD, Rig, encoded
from support.pictures import digit_images, photograph_jpegs
from support.server import serving


def directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


@pytest.fixture
def name(pair: Client) -> Iterator[str]:
    made = f"joined-{uuid.uuid4().hex[:8]}"
    yield made
    pair.delete_collection(made)


def test_vectors_are_those_of_the_members_side_by_side_each_with_the_same_weight(pair: Client) -> None:
    images = [*photograph_jpegs()[:3], b"no image"]
    tiny, other, both = (pair.embed(images, backbone) for backbone in ("likewise-tiny", OTHER, JOINED))
    assert both.backbone == JOINED
    assert both.vectors.shape == (4, 512 + 1024)
    assert list(both.errors) == [3]
    assert isinstance(both.errors[3], InvalidArgument)
    assert np.all(both.vectors[3] == 0)
    expected = np.hstack([directions(tiny.vectors[:3]), directions(other.vectors[:3])]) / np.sqrt(2)
    assert np.allclose(both.vectors[:3], expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(both.vectors[:3], axis=1), 1, atol=1e-6)


def test_the_space_is_its_own_and_knows_the_order(pair: Client) -> None:
    image = photograph_jpegs()[:1]
    prints = [pair.embed(image, backbone).fingerprint for backbone in ("likewise-tiny", OTHER, JOINED, JOINED)]
    turned = pair.embed(image, f"{OTHER}+likewise-tiny")
    assert prints[2] == prints[3]
    assert len({*prints, turned.fingerprint}) == 4
    assert turned.backbone == f"{OTHER}+likewise-tiny"


@pytest.mark.parametrize(
    ("backbone", "options", "error", "words"),
    [
        ("likewise-tiny+resnet50", {}, NotFound, "'resnet50' is not served here"),
        ("likewise-tiny+", {}, InvalidArgument, "different names"),
        ("likewise-tiny+likewise-tiny", {}, InvalidArgument, "different names"),
        (f"likewise-tiny + {OTHER}", {}, InvalidArgument, "without spaces"),
        (JOINED, {"layer": "layer3"}, InvalidArgument, "leave layer and pooling out"),
        (JOINED, {"pooling": "max"}, InvalidArgument, "leave layer and pooling out"),
    ],
)
def test_what_cannot_be_joined_is_told(
    pair: Client, backbone: str, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pair.embed(photograph_jpegs()[:1], backbone, **options)
    with pytest.raises(error, match=words):
        pair.create_collection("never", backbone, **options)


def test_a_collection_of_joined_backbones_is_filled_searched_and_learned_from(pair: Client, name: str) -> None:
    images, labels = digit_images(6, classes=3)
    digits = pair.create_collection(name, JOINED)
    assert digits.info.backbone == JOINED
    assert digits.info.dim == 1536
    digits.add(images, labels=labels, ids=[f"d{i}" for i in range(18)]).raise_for_errors()
    hits = digits.search(images[4], k=3)
    assert hits[0].id == "d4"
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    vector = pair.embed([images[4]], JOINED)
    assert digits.search(vector=vector.vectors[0], k=1, fingerprint=vector.fingerprint)[0].id == "d4"
    with pytest.raises(FailedPrecondition, match="of space"):
        digits.search(vector=vector.vectors[0], fingerprint=pair.embed([images[4]]).fingerprint)
    assert digits.train_head("digits", "ridge").fingerprint == digits.fingerprint
    assert digits.classify([images[4]], head="digits")[0].best == labels[4]
    assert digits.classify([images[4]], head="digits", views="flip")[0].best == labels[4]
    again = pair.create_collection(name, JOINED, exist_ok=True)
    assert again.count() == 18


def test_a_stream_of_images_goes_through_joined_backbones_too(pair: Client) -> None:
    images = photograph_jpegs()[:3]
    expected = pair.embed(images, JOINED)
    requests = [
        epb.EmbedStreamRequest(
            item_id=i, image=pb.Image(data=data), backbone=pb.BackboneRef(name=JOINED) if i == 0 else None
        )
        for i, data in enumerate(images)
    ]
    with grpc.insecure_channel(pair._async._transport.address) as channel:
        stub: Any = EmbeddingServiceStub(channel)
        replies = {reply.item_id: reply for reply in stub.EmbedStream(iter(requests))}
    for i, vector in enumerate(expected.vectors):
        assert replies[i].space.fingerprint == expected.fingerprint
        assert np.allclose(np.frombuffer(replies[i].vector.data, "<f4"), vector, atol=1e-5)


def test_joined_backbones_are_not_among_those_that_are_listed(pair: Client) -> None:
    assert [one.name for one in pair.backbones(served_only=True)] == ["likewise-tiny", OTHER]


def test_parts_without_direction_are_told() -> None:
    rows, missing = joined.side_by_side([np.array([[3, 4], [0, 0]], np.float32), np.array([[2], [1]], np.float32)])
    assert missing.tolist() == [False, True]
    assert rows[0] == pytest.approx(np.array([0.6, 0.8, 1]) / np.sqrt(2))
    parts = [Space("a", 2), Space("b", 1)]
    ref = BackboneRef("x+y")
    assert joined.joined_space(ref, parts).dim == 3
    assert joined.joined_space(ref, parts).fingerprint != joined.joined_space(ref, parts[::-1]).fingerprint


@pytest.fixture
async def embedder(rig: Rig) -> Any:
    """Two fakes behind one embedder, whose vectors are numbers: what is joined are their signs."""
    batcher = rig.batcher(max_batch=4)
    fakes: dict[str, Any] = {name: rig.backbone(name) for name in ("a", "b", "c+d")}
    return Embedder(fakes, batcher, Admission(Cost(100, 2**20, 2**30)), max_pixels=1000)


async def test_one_member_s_failure_is_the_image_s_own(embedder: Any) -> None:
    embedder.backbones["b"].broken = {2}
    found = await embedder.embed([*encoded(1, 2, 3), BAD], BackboneRef("a+b"))
    assert {index: type(error) for index, error in found.errors.items()} == {1: Internal, 3: Invalid}
    assert found.vectors[[0, 2]] == pytest.approx(np.full((2, 2), 2**-0.5))
    assert not found.vectors[[1, 3]].any()


async def test_an_image_of_which_a_member_makes_zeros_has_no_vector(embedder: Any) -> None:
    found = await embedder.embed(encoded(0, 1), BackboneRef("a+b"))
    assert list(found.errors) == [0]
    assert "nothing but zeros" in found.errors[0].message
    assert not found.vectors[0].any()


async def test_what_one_member_has_embedded_costs_the_pair_only_the_other(rig: Rig) -> None:
    batcher = rig.batcher(cache=EmbeddingCache(2**20))
    fakes: dict[str, Any] = {name: rig.backbone(name) for name in ("a", "b")}
    made = Embedder(fakes, batcher, Admission(Cost(100, 2**20, 2**30)), max_pixels=1000)
    await made.embed(encoded(1, 2), BackboneRef("a"))
    assert (await made.embed(encoded(1, 2), BackboneRef("a+b"))).vectors == pytest.approx(np.full((2, 2), 2**-0.5))
    assert [sum(map(len, fake.batches)) for fake in fakes.values()] == [2, 2]


async def test_a_name_that_is_served_as_it_stands_is_one_backbone(embedder: Any) -> None:
    assert (await embedder.embed(encoded(5), BackboneRef("c+d"))).vectors.tolist() == [[5]]
    assert await embedder.blocks(BackboneRef("c+d")) == (1,)
    assert await embedder.blocks(BackboneRef("a+b")) == (1, 1)


async def test_both_members_count_once_against_the_budget(embedder: Any) -> None:
    await embedder.embed(encoded(1, 2, 3), BackboneRef("a+b"))
    assert embedder.admission.held.items == 0
    assert sum(map(len, embedder.backbones["a"].batches)) == 3
    assert sum(map(len, embedder.backbones["b"].batches)) == 3


def test_an_ensemble_on_joined_backbones_has_a_member_for_each(pair: Client, name: str) -> None:
    images, labels = digit_images(6, classes=3)
    ids = [f"d{i:02}" for i in range(18)]
    digits = pair.create_collection(name, JOINED)
    digits.add(images, labels=labels, ids=ids).raise_for_errors()
    digits.train_head("both", "ensemble")
    stored = np.stack([item.vector for item in digits.items(vectors=True) if item.vector is not None])
    queries = pair.embed(digit_images(8, classes=3)[0][6:8], JOINED)
    answers = digits.classify(vectors=queries.vectors, head="both")
    told = [list(answer.probabilities.values()) for answer in answers]
    pool = directions(stored).mean(axis=0)
    by_blocks = heads.train(stored, labels, ids, kind="ensemble", blocks=(512, 1024), pool_mean=pool)
    in_one = heads.train(stored, labels, ids, kind="ensemble", pool_mean=pool)
    assert np.allclose(told, by_blocks.scores(queries.vectors)[0], atol=1e-4)
    assert not np.allclose(told, in_one.scores(queries.vectors)[0], atol=1e-3)


async def test_an_ensemble_needs_the_members_and_other_heads_do_not(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights")
    images, labels = digit_images(4, classes=2)
    async with (
        serving(tmp_path / "data", backbone=["likewise-tiny", OTHER], weights_dir=weights) as running,
        AsyncClient(f"127.0.0.1:{running.port}") as client,
    ):
        digits = await client.create_collection("digits", JOINED)
        (await digits.add(images, labels=labels, ids=[f"d{i}" for i in range(8)])).raise_for_errors()
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as client:
        digits = await client.collection("digits")
        await digits.train_head("one", "ridge")
        assert (await digits.classify(ids=["d0"], head="one"))[0].best == "0"
        for call in (digits.train_head("two", "ensemble"), digits.search(images[0])):
            with pytest.raises(FailedPrecondition, match=f"made with likewise-tiny.{OTHER}.*'{OTHER}' is not served"):
                await call
