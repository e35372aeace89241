"""Heads trained on named items, and updated: through the client, against training from scratch."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise.head_results import Head
from likewise.sync import Collection
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from support.pictures import digit_images, photograph_jpegs
from support.server import ServerProcess, serving

DIM = 12
LABELS = ["apple", "pear", "plum", "quince"]
UPDATABLE = ["ncm", "ridge", "lda", "knn"]


def vectors(n: int, seed: int = 0) -> NDArray[np.float32]:
    """`n` vectors of the four classes in turn, which overlap a little."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(LABELS), DIM))
    return (centres[np.arange(n) % len(LABELS)] + 0.8 * rng.normal(size=(n, DIM))).astype(np.float32)


def labels(n: int) -> list[str]:
    return [LABELS[i % len(LABELS)] for i in range(n)]


@pytest.fixture
def fruit(client: Client) -> Iterator[Collection]:
    """Forty labelled vectors, i00 to i39, of which the first 24 are of part 1, and one without a label."""
    made = client.create_collection(f"fruit-{uuid.uuid4().hex[:8]}", dim=DIM)
    parts = [{"part": 1 if i < 24 else 2} for i in range(40)]
    made.add_vectors([f"i{i:02}" for i in range(40)], vectors(40), labels=labels(40), attributes=parts)
    made.add_vectors(["bare"], vectors(1, seed=5))
    yield made
    client.delete_collection(made.name)


def assert_same(collection: Collection, updated: Head, fresh: Head) -> None:
    """The two heads answer the same queries alike, and were measured alike."""
    queries = vectors(64, seed=7)
    one, two = (collection.classify(vectors=queries, head=h.name, version=h.version) for h in (updated, fresh))
    for a, b in zip(one, two, strict=True):
        assert list(a.probabilities) == list(b.probabilities)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-6)
        assert (a.novelty, a.threshold) == pytest.approx((b.novelty, b.threshold), abs=1e-6)
        assert [n.id for n in a.neighbours] == [n.id for n in b.neighbours]
    assert (updated.classes, updated.class_counts, updated.kind) == (fresh.classes, fresh.class_counts, fresh.kind)
    assert updated.metrics.accuracy == pytest.approx(fresh.metrics.accuracy)
    assert updated.metrics.false_reject_rate == pytest.approx(fresh.metrics.false_reject_rate)


@pytest.mark.parametrize("kind", UPDATABLE)
def test_an_update_equals_training_on_the_changed_set(fruit: Collection, kind: str) -> None:
    first = fruit.train_head("h", kind, where="part = 1")
    gone = ["i00", "i05"]
    updated = fruit.update_head("h", where="part = 2", remove=gone)
    assert (first.version, updated.version) == (1, 2)
    fresh = fruit.train_head("fresh", kind, ids=[f"i{i:02}" for i in range(40) if f"i{i:02}" not in gone])
    assert_same(fruit, updated, fresh)
    assert fruit.head("h", 1).class_counts == first.class_counts, "the version before is as it was"
    back = fruit.update_head("h", add=gone, remove=[f"i{i}" for i in range(24, 40)])
    assert_same(fruit, back, first)


@pytest.mark.parametrize("kind", UPDATABLE)
def test_a_class_comes_and_goes(fruit: Collection, kind: str) -> None:
    before = fruit.train_head("h", kind, where="label != 'quince'")
    assert "quince" not in before.classes
    fresh = fruit.train_head("fresh", kind)
    assert_same(fruit, fruit.update_head("h", where="label = 'quince'"), fresh)
    after = fruit.update_head("h", remove=[f"i{i:02}" for i in range(3, 40, 4)])
    assert_same(fruit, after, before)


def test_examples_that_are_not_stored_are_added_and_replaced_by_their_ids(fruit: Collection) -> None:
    given, names = vectors(8, seed=3), [f"mine{i}" for i in range(8)]
    fruit.train_head("h", "ridge", vectors=given, labels=labels(8), ids=names)
    more, again = vectors(4, seed=4), [*names[:2], "new", "newer"]
    updated = fruit.update_head("h", vectors=more, labels=labels(4), ids=again)
    fresh = fruit.train_head(
        "fresh",
        "ridge",
        vectors=np.concatenate([more, given[2:]]),
        labels=[*labels(4), *labels(8)[2:]],
        ids=[*again, *names[2:]],
    )
    assert_same(fruit, updated, fresh)
    for _ in range(2):  # those without an id never take the place of others
        updated = fruit.update_head("h", vectors=vectors(4, seed=updated.version), labels=labels(4))
    assert updated.metrics.items == 10 + 4 + 4


def test_pictures_are_added_to_a_head_of_pictures(collection: Collection) -> None:
    images, names = digit_images(6, classes=3)
    ids = [f"d{i:02}" for i in range(18)]
    collection.train_head("h", "ncm", images=images[:12], labels=names[:12], ids=ids[:12])
    updated = collection.update_head("h", images=images[12:], labels=names[12:], ids=ids[12:])
    assert updated.classes == ("0", "1", "2")
    fresh = collection.train_head("fresh", "ncm", images=images, labels=names, ids=ids)
    pairs = [collection.classify(photograph_jpegs()[:4] + images[:4], head=h.name) for h in (updated, fresh)]
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(
            list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-3
        )  # other batches
    with pytest.raises(InvalidArgument, match="training image 1"):
        collection.update_head("h", images=[images[0], b"no picture"], labels=["0", "1"])
    assert collection.head("h").version == updated.version


def test_a_head_goes_on_after_its_items_are_gone(fruit: Collection) -> None:
    before = fruit.train_head("h", "ridge", where="part = 1")
    fresh = fruit.train_head("fresh", "ridge", ids=[f"i{i:02}" for i in range(4, 24)])
    fruit.delete([f"i{i:02}" for i in range(4)])
    answers = fruit.classify(vectors=vectors(40)[:4], head="h", neighbours=1)
    assert [a.neighbours[0].id for a in answers] == [f"i{i:02}" for i in range(4)], "it keeps what it learned"
    assert [error.code for error in (fruit.classify(ids=["i00"], head="h")[0].error,) if error] == ["NOT_FOUND"]
    assert fruit.evaluate("h", where="part = 1").items == 20
    assert fruit.head("h") == before
    after = fruit.update_head("h", remove=[f"i{i:02}" for i in range(4)])
    assert_same(fruit, after, fresh)


def test_what_an_update_refuses(fruit: Collection) -> None:
    fruit.train_head("h", "ncm", where="part = 1")
    with pytest.raises(InvalidArgument, match="nothing to add or remove"):
        fruit.update_head("h")
    with pytest.raises(InvalidArgument, match="add is empty"):
        fruit.update_head("h", add=[])
    with pytest.raises(InvalidArgument, match="add= for stored items"):
        fruit.update_head("h", ids=["i30"])
    with pytest.raises(NotFound, match="'nobody', 'noone'"):
        fruit.update_head("h", add=["i30", "nobody", "noone"])
    with pytest.raises(FailedPrecondition, match="'bare'"):
        fruit.update_head("h", add=["bare"])
    with pytest.raises((InvalidArgument, NotFound, FailedPrecondition), match="'i39'"):
        fruit.update_head("h", remove=["i39"])
    with pytest.raises(NotFound, match="no head 'other'"):
        fruit.update_head("other", add=["i30"])
    with pytest.raises(FailedPrecondition, match="numbers"):
        fruit.update_head("h", vectors=np.ones((1, 3)), labels=["pear"])
    with pytest.raises(FailedPrecondition, match="space"):
        fruit.update_head("h", vectors=np.ones((1, DIM)), labels=["pear"], fingerprint="another")
    fruit.train_head("slow", "logreg", where="part = 1", C=1)
    with pytest.raises(FailedPrecondition, match="logreg"):
        fruit.update_head("slow", add=["i30"])
    assert [(head.name, head.version) for head in fruit.heads()] == [("h", 1), ("slow", 1)]


def test_what_training_on_ids_refuses(fruit: Collection) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        fruit.train_head("h", ids=["i00", "nobody", "i01"])
    with pytest.raises(FailedPrecondition, match="without a label: 'bare'"):
        fruit.train_head("h", ids=["i00", "bare"])
    with pytest.raises(InvalidArgument, match="ids and where exclude each other"):
        fruit.train_head("h", ids=["i00"], where="part = 1")
    with pytest.raises(InvalidArgument, match="ids is empty"):
        fruit.train_head("h", ids=[])
    with pytest.raises(InvalidArgument, match="no examples"):
        fruit.train_head("h", vectors=np.zeros((0, DIM)), labels=[])
    many = [f"absent{i}" for i in range(9)]
    with pytest.raises(NotFound, match="'absent4' and 4 more"):
        fruit.train_head("h", ids=many)
    head = fruit.train_head("h", "ncm", ids=["i00", "i01", "i04", "i05", "i00"])
    assert head.class_counts == {"apple": 2, "pear": 2}, "an id given twice counts once"
    mixed = fruit.train_head("h", "ncm", vectors=vectors(2), labels=["fig", "fig"], ids=["a", "b"], with_stored=True)
    assert mixed.metrics.items == 42, "beside vectors, ids are their names"


def test_a_repeated_request_gives_the_version_it_made(server: ServerProcess, fruit: Collection) -> None:
    fruit.train_head("h", "ncm", where="part = 1")
    with grpc.insecure_channel(server.address) as channel:
        heads = HeadServiceStub(channel)
        request = hpb.UpdateHeadRequest(collection=fruit.name, name="h", remove_ids=["i00"], request_id="once")
        first = heads.UpdateHead(request).head
        assert heads.UpdateHead(request).head == first
        train = hpb.TrainHeadRequest(collection=fruit.name, name="t", kind="ncm", where="part = 1", request_id="one")
        trained = heads.TrainHead(train).head
        fruit.delete(["i01"])
        assert heads.TrainHead(train).head == trained, "what it made then, not what it would make now"
    assert first.version == 2
    assert [(head.name, head.version) for head in fruit.heads()] == [("h", 1), ("h", 2), ("t", 1)]


async def test_of_two_updates_at_once_neither_is_lost(server: ServerProcess, fruit: Collection) -> None:
    fruit.train_head("h", "ncm", where="part = 1")
    async with AsyncClient(server.address) as lw:
        pets = await lw.collection(fruit.name)
        await asyncio.gather(*(pets.update_head("h", add=[f"i{i}"]) for i in range(24, 32)))
    head = fruit.head("h")
    assert (head.version, head.metrics.items) == (9, 32)


async def test_an_adapted_head_is_not_updated(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as lw:
        pets = await lw.create_collection("pets", dim=DIM)
        await pets.add_vectors([f"i{i}" for i in range(20)], vectors(20), labels=labels(20))
        await pets.train_head("h", "ncm")
        store = running.engine.store
        row = store.get_head("pets", "h")
        store.save_head("pets", "h", row.kind, {**row.meta, "adaptation": {"method": "coral"}}, row.blob)
        with pytest.raises(FailedPrecondition, match="train it again"):
            await pets.update_head("h", remove=["i0"])
        assert (await pets.update_head("h", remove=["i0"], version=1)).version == 3


async def test_what_a_large_head_does_not_keep_comes_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likewise_server.heads.training.MAX_SUPPORTS", 20)
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as lw:
        pets = await lw.create_collection("pets", dim=DIM)
        ids = [f"i{i:02}" for i in range(60)]
        await pets.add_vectors(ids, vectors(60), labels=labels(60))
        await pets.train_head("h", "ncm")
        held = set((await running.engine.heads.get("pets", "h")).head.support_ids)
        apart = [item for item in ids if item not in held]
        assert len(apart) > 30
        updated = await pets.update_head("h", remove=apart[:10])
        fresh = await pets.train_head("fresh", "ncm", ids=[i for i in ids if i not in apart[:10]])
        queries = vectors(32, seed=8)
        one, two = [await pets.classify(vectors=queries, head=h) for h in ("h", "fresh")]
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-6)
        assert updated.metrics.items == fresh.metrics.items == 50
        assert (await pets.evaluate("h")).training_items == 50
        # A new vector under an old id, and an old one that nobody has any more.
        replaced = await pets.update_head("h", vectors=vectors(1, seed=9), labels=["pear"], ids=[apart[10]])
        assert replaced.metrics.items == 50
        await pets.delete([apart[11]])
        with pytest.raises(FailedPrecondition, match=f"{apart[11]}.*train the head again"):
            await pets.update_head("h", remove=[apart[11]])
