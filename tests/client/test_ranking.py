"""Ranking backbones on one's own pictures, and collections as they are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from likewise_server.engine import ranking
from likewise_server.heads.transferability import MOST_ROWS, transferability
from likewise_server.heads.validate import wilson
from support.backbones import JOINED, OTHER
from support.pictures import digit_images, photograph_jpegs
from support.server import serving


@pytest.fixture(scope="module")
def digits() -> tuple[list[bytes], list[str]]:
    return digit_images(6, classes=4)


@pytest.fixture
def name(pair: Client) -> Iterator[str]:
    made = f"ranked-{uuid.uuid4().hex[:8]}"
    yield made
    for info in pair.collections():
        if info.name.startswith(made):
            pair.delete_collection(info.name)


def test_backbones_are_ranked_as_the_vectors_they_make_are(pair: Client, digits: tuple[list[bytes], list[str]]) -> None:
    images, labels = digits
    found = pair.rank_backbones(images, labels, ["likewise-tiny", OTHER, JOINED])
    assert {one.backbone for one in found} == {"likewise-tiny", OTHER, JOINED}
    assert (found.items, found.classes, found.chance, found.errors) == (24, 4, 0.25, {})
    scores = [(one.knn_accuracy + one.ridge_accuracy) / 2 for one in found]
    assert scores == sorted(scores, reverse=True)
    assert found.reason.startswith(f"{found[0].backbone} is right on {100 * scores[0]:.1f} % of 24 items")
    for one in found:
        embedded = pair.embed(images, one.backbone)
        own = transferability(embedded.vectors, labels)
        assert one.error is None
        assert (one.fingerprint, one.dim, one.collection) == (embedded.fingerprint, embedded.vectors.shape[1], "")
        # A vector's last bits depend on the batch it was computed in, and an answer may hang on them.
        assert one.knn_accuracy == pytest.approx(own.knn_right.mean(), abs=0.05)
        assert one.ridge_accuracy == pytest.approx(own.ridge_right.mean(), abs=0.05)
        assert (one.knn_low, one.knn_high) == pytest.approx(wilson(round(24 * one.knn_accuracy), 24))
        assert (one.ridge_low, one.ridge_high) == pytest.approx(wilson(round(24 * one.ridge_accuracy), 24))
        assert one.log_me == pytest.approx(own.log_me, abs=1e-2)
        assert one.h_score == pytest.approx(own.h_score, abs=1e-2)
        assert one.ms_per_image is not None
        assert one.ms_per_image > 0


def test_all_that_are_served_are_ranked_where_none_is_named(
    pair: Client, digits: tuple[list[bytes], list[str]]
) -> None:
    assert sorted(one.backbone for one in pair.rank_backbones(*digits)) == ["likewise-tiny", OTHER]


async def test_the_async_client_ranks_too(pair: Client, digits: tuple[list[bytes], list[str]]) -> None:
    async with AsyncClient(pair._async._transport.address) as client:
        found = await client.rank_backbones(*digits, ["likewise-tiny"])
    assert [one.backbone for one in found] == ["likewise-tiny"]
    assert "nothing else was measured" in found.reason


def test_bad_images_and_backbones_are_their_own_errors(
    pair: Client, digits: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    images, labels = digits
    mixed: list[Any] = [b"no image", *images[:12], tmp_path / "missing.png", *images[12:], b""]
    told = ["x", *labels[:12], "y", *labels[12:], "z"]
    found = pair.rank_backbones(mixed, told, ["nothing", OTHER, "likewise-tiny?layer=nowhere"])
    assert {i: type(error) for i, error in found.errors.items()} == {
        0: InvalidArgument,
        13: NotFound,
        26: InvalidArgument,
    }
    assert [one.backbone for one in found] == [OTHER, "nothing", "likewise-tiny?layer=nowhere"]
    assert [type(one.error) for one in found] == [type(None), NotFound, InvalidArgument]
    assert found.items == 24
    assert found[1].ms_per_image is None


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((), {}, InvalidArgument, "give labelled images, or collections="),
        (([b"x"],), {}, InvalidArgument, "need labels"),
        (([b"x"], ["a", "b"]), {}, InvalidArgument, "labels has 2 entries"),
        (([b"x"], [" "]), {}, InvalidArgument, "example 0 has no label"),
        (([], []), {}, InvalidArgument, "no images to rank backbones on"),
        (([Path("/nowhere/a.png")], ["a"]), {}, NotFound, "no such file"),
        (([b"x", b"y"], ["a", "b"]), {}, InvalidArgument, "none of the 2 images can be read"),
        (([b"x"], ["a"], ["nope"]), {}, NotFound, "'nope' is not served"),
        (([b"x"], ["a"], [OTHER, OTHER]), {}, InvalidArgument, "named twice"),
        ((photograph_jpegs()[:4], ["a", "b", "c", "c"]), {}, InvalidArgument, "two classes or more"),
        ((), {"collections": []}, InvalidArgument, "collections is empty"),
        ((), {"collections": "pets"}, InvalidArgument, "is a list"),
        ((), {"collections": ["a"], "backbones": ["b"]}, InvalidArgument, "a backbone each"),
        ((), {"collections": ["nowhere", "neither"]}, NotFound, "nowhere"),
        ((), {"collections": [f"c{i}" for i in range(33)]}, OutOfRange, "the limit is 32"),
    ],
)
def test_what_cannot_be_ranked_is_told(
    pair: Client, arguments: Any, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pair.rank_backbones(*arguments, **options)


def fill(pair: Client, name: str, vectors: Any, ids: list[str], labels: list[str | None]) -> str:
    made = pair.create_collection(name, dim=np.shape(vectors)[1])
    made.add_vectors(ids, vectors, labels=labels).raise_for_errors()
    return name


def features(n: int, spread: float, seed: int) -> tuple[Any, list[str], list[str | None]]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    vectors = rng.normal(size=(3, 8))[y] + spread * rng.normal(size=(n, 8)) + 2
    return vectors.astype(np.float32), [f"i{i:03}" for i in range(n)], [f"class {value}" for value in y]


def test_collections_are_compared_on_the_items_that_both_have(pair: Client, name: str) -> None:
    vectors, ids, labels = features(90, 0.5, 0)
    noise, _, _ = features(90, 20.0, 1)
    good = fill(pair, f"{name}-good", vectors, ids, labels)
    # In another order, without the first items and with others, one label otherwise and one away.
    changed: list[str | None] = ["class 9", None, *labels[12:]]
    bad = fill(
        pair, f"{name}-bad", [*noise[10:][::-1], noise[0]], [*ids[10:][::-1], "other"], [*changed[::-1], "class 0"]
    )
    found = pair.rank_backbones(collections=[bad, good, f"{name}-missing"])
    assert [one.collection for one in found] == [good, bad, f"{name}-missing"]
    assert isinstance(found[2].error, NotFound)
    assert found.items == 78
    assert "1 items whose labels differ" in found.reason
    assert "points apart" in found.reason
    assert "within the noise" not in found.reason
    own = transferability(vectors[12:], [label or "" for label in labels[12:]])
    assert found[0].knn_accuracy == own.knn_right.mean()
    assert found[0].ridge_accuracy == own.ridge_right.mean()
    assert found[0].log_me == pytest.approx(own.log_me, abs=1e-4)
    assert (found[0].ms_per_image, found[0].backbone, found[0].dim) == (None, "", 8)
    assert found[0].fingerprint == "external:8"


def test_equally_good_ones_are_within_the_noise(pair: Client, name: str) -> None:
    (first, ids, labels), (second, _, _) = features(60, 0.8, 0), features(60, 0.8, 0)
    rng = np.random.default_rng(3)
    one = fill(pair, f"{name}-1", first + 0.05 * rng.normal(size=first.shape), ids, labels)
    two = fill(pair, f"{name}-2", second + 0.05 * rng.normal(size=second.shape), ids, labels)
    assert "within the noise" in pair.rank_backbones(collections=[one, two]).reason


def test_collections_with_nothing_in_common_are_told(pair: Client, name: str) -> None:
    vectors, ids, labels = features(12, 0.5, 0)
    one = fill(pair, f"{name}-1", vectors, ids, labels)
    two = fill(pair, f"{name}-2", vectors, [f"other {i}" for i in ids], labels)
    three = fill(pair, f"{name}-3", vectors, ids, [None] * 12)
    for other in (two, three):
        with pytest.raises(FailedPrecondition, match="no labelled items with the same ids"):
            pair.rank_backbones(collections=[one, other])


def test_a_ranking_takes_so_many_images(pair: Client) -> None:
    with pytest.raises(OutOfRange, match=f"at most {MOST_ROWS} images"):
        pair.rank_backbones([b"?"] * (MOST_ROWS + 1), ["a"] * (MOST_ROWS + 1), ["likewise-tiny"])


async def test_over_the_bytes_a_ranking_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "MOST_BYTES", 20_000)
    images = photograph_jpegs()[:8]
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as client:
        with pytest.raises(OutOfRange, match="and 20000 bytes"):
            await client.rank_backbones(images, ["a", "b"] * 4)
        assert sum(map(len, images)) > 20_000


async def test_pictures_that_are_in_the_cache_are_measured_anew(tmp_path: Path) -> None:
    images, labels = digit_images(3, classes=2)
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as client:
        plain = await client.embed(images)
        cache = running.engine.batcher.cache
        assert len(cache) == 6
        ranked = await client.rank_backbones(images, labels)
        assert ranked.timings.forward_ms > 0
        assert len(cache) == 6
        assert np.array_equal((await client.embed(images)).vectors, plain.vectors)


def test_on_the_wire_the_first_message_says_what_is_ranked(pair: Client) -> None:
    first = hpb.RankBackbonesRequest(backbones=[pb.BackboneRef(name="likewise-tiny")])
    example = hpb.Example(label="a", image=pb.Image(data=b"x"))
    cases: list[tuple[list[hpb.RankBackbonesRequest], str]] = [
        ([], "no message came"),
        ([first, first], "first message"),
        ([first, hpb.RankBackbonesRequest(collections=["c"])], "first message"),
        ([hpb.RankBackbonesRequest(collections=["c"], examples=[example])], "leave backbones and examples out"),
        ([hpb.RankBackbonesRequest(examples=[hpb.Example(label="a", vector=b"\0\0\0\0")])], "example 0 has no image"),
    ]
    with grpc.insecure_channel(pair._async._transport.address) as channel:
        stub: Any = HeadServiceStub(channel)
        for messages, words in cases:
            with pytest.raises(grpc.RpcError, match=words) as raised:
                stub.RankBackbones(iter(messages))
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
