"""The ways to ask through the client: blocking and async, images and vectors, groups, examples, duplicates."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from likewise.sync import Collection
from support.pictures import jpeg, photograph_jpegs, photographs
from support.server import ServerProcess

NAMES = sorted(photographs())


@pytest.fixture(scope="module")
def album(client: Client) -> Iterator[Collection]:
    """Each photograph as it is, and again smaller and compressed harder."""
    made = client.create_collection(f"album-{uuid.uuid4().hex[:8]}", indexed=["copy"])
    sizes = ((400, 95), (300, 40))
    for copy, (side, quality) in enumerate(sizes):
        images = [jpeg(photographs()[name].resize((side, side)), quality=quality) for name in NAMES]
        made.add(
            images,
            ids=[f"{name}-{copy}" for name in NAMES],
            labels=NAMES,
            attributes=[{"copy": copy, "file": {"side": side}}] * len(NAMES),
        ).raise_for_errors()
    yield made
    client.delete_collection(made.name)


def test_a_collection_says_how_it_is_searched(client: Client) -> None:
    made = client.create_collection("how", dim=3, index="exact", indexed=["year"], storage="fp16")
    assert (made.info.index, made.info.indexed, made.info.storage) == ("exact", ("year",), "fp16")
    made.add_vectors(["a", "b"], np.eye(3)[:2])
    assert made.refresh().state.kind == "exact"
    assert made.update(index="auto", indexed=[]).index == "auto"
    assert made.info.indexed == ()
    assert made.update(indexed=["place"]).index == "auto"
    client.delete_collection("how")
    with pytest.raises(NotFound):
        made.update(index="exact")
    with pytest.raises(InvalidArgument, match="fp32 or fp16"):
        client.create_collection("how", dim=3, storage="int8")
    with pytest.raises(InvalidArgument, match="in brackets"):
        client.create_collection("how", dim=3, indexed="year")


def test_min_score_finds_the_copy_and_nothing_else(album: Collection) -> None:
    for name in NAMES:
        [copy] = album.search(id=f"{name}-0", k=10, min_score=0.93, ids_only=True)
        assert copy.id == f"{name}-1"
        assert (copy.label, copy.attributes, copy.uri) == (None, {}, "")
        assert copy.score > 0.93


def test_ids_only_changes_nothing_but_the_rest(album: Collection) -> None:
    images = photograph_jpegs()[:3]
    for whole, columns in zip(album.search_many(images), album.search_many(images, ids_only=True), strict=True):
        assert [hit.id for hit in columns] == [hit.id for hit in whole]
        np.testing.assert_allclose([h.score for h in columns], [h.score for h in whole], atol=1e-6)
        assert whole[0].label


def test_groups_are_a_list_of_hits_too(album: Collection) -> None:
    hits = album.search(id="chelsea-0", k=3, group_by="label", group_size=2)
    assert hits.groups[0].value == "chelsea"
    assert [len(group.hits) for group in hits.groups] == [1, 2, 2]
    assert list(hits) == [hit for group in hits.groups for hit in group.hits]
    by_side = album.search(id="chelsea-0", k=9, group_by="file.side", ids_only=True)
    assert [group.value for group in by_side.groups] == [300, 400]
    [first, second] = album.search_many(ids=["rocket-0", "coffee-0"], k=1, group_by="copy")
    assert [first.groups[0].value, second.groups[0].hits[0].id] == [1, "coffee-1"]
    with pytest.raises(InvalidArgument, match="cannot group by"):
        album.search(id="chelsea-0", group_by="label like")


def test_examples_of_every_kind_are_one_query(album: Collection, client: Client) -> None:
    picture = jpeg(photographs()["chelsea"].resize((350, 350)))
    vector = client.embed([picture]).vectors[0]
    hit = album.search(picture, k=1)[0]
    [item] = album.get(["chelsea-0"])
    assert item is not None
    for example in (picture, vector):
        assert album.search_examples([example], k=1)[0].label == "chelsea"
    for example in (hit, item):
        found = album.search_examples([example], k=1)[0]
        assert found.label == "chelsea"
        assert found.id != example.id
    mixed = album.search_examples([picture, hit], [vector, "/nowhere.jpg"][:1], positive_ids=["rocket-0"], k=2)
    assert {"rocket-1", hit.id}.isdisjoint({mixed[0].id}) or mixed[0].id == "rocket-1"
    towards = album.search_examples(positive_ids=["chelsea-0", "coffee-0"], negative_ids=["chelsea-1"], k=1)
    assert towards[0].id == "coffee-1"
    grouped = album.search_examples(positive_ids=["coffee-0"], k=2, group_by="copy", min_score=-1.0)
    assert [group.value for group in grouped.groups] == [1, 0]


def test_bad_examples_say_what_to_do(album: Collection) -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        album.search_examples(negative_ids=["chelsea-0"])
    with pytest.raises(NotFound, match="positive example 1: no item 'gone'"):
        album.search_examples(positive_ids=["chelsea-0", "gone"])
    with pytest.raises(NotFound, match="no such file"):
        album.search_examples(["/nowhere.jpg"])
    with pytest.raises(InvalidArgument, match="in brackets"):
        album.search_examples("chelsea.jpg")
    with pytest.raises(FailedPrecondition, match="has 2 numbers"):
        album.search_examples([np.ones(2)])


def test_duplicates_are_the_copies(album: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    found = album.duplicates(0.93, progress=True)
    assert sorted(group.ids for group in found) == [(f"{name}-0", f"{name}-1") for name in NAMES]
    assert (found.items, found.spare, found.exact, found.truncated) == (2 * len(NAMES), len(NAMES), True, 0)
    assert found.min_score == pytest.approx(0.93)
    assert all(group.items[0].score == pytest.approx(1) for group in found)
    assert all(0.93 <= group.items[1].score < 1 for group in found)
    assert found[0].items[0].attributes == {"copy": 0, "file": {"side": 400}}
    assert f"{2 * len(NAMES)}/{2 * len(NAMES)}" in capsys.readouterr().err
    assert album.duplicates(0.93, where="copy = 0") == []
    with pytest.raises(InvalidArgument, match="where"):
        album.duplicates(where="copy =")
    with pytest.raises(InvalidArgument, match="whole number"):
        album.duplicates(max_neighbours=-1)


async def test_the_async_client_asks_the_same(album: Collection, server: ServerProcess) -> None:
    async with AsyncClient(server.address) as lw:
        there = await lw.collection(album.name)
        assert await there.duplicates(0.93) == album.duplicates(0.93)
        assert (await there.search_examples(positive_ids=["coffee-0"], k=1))[0].id == "coffee-1"


def test_many_vectors_are_cut_into_messages_and_stay_in_order(client: Client) -> None:
    vectors = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
    made = client.create_collection("many", dim=8)
    made.add_vectors([f"v{i}" for i in range(700)], vectors)
    found = made.search_many(vectors=vectors, k=1, ids_only=True)
    assert [hits[0].id for hits in found] == [f"v{i}" for i in range(700)]
    assert made.search_many(vectors=vectors[:0], k=1) == []
    client.delete_collection("many")


def test_nobody_there_is_said_at_once() -> None:
    with Client("127.0.0.1:9", timeout=1.0) as lost, pytest.raises(Unavailable, match="likewise serve"):
        lost.collection("album")


def test_a_server_that_goes_away_is_an_error_not_an_answer(client: Client) -> None:
    made = client.create_collection("gone-soon", dim=2)
    client.delete_collection("gone-soon")
    with pytest.raises(NotFound):
        made.duplicates()
