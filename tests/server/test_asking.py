"""The ways to ask, on the wire: thresholds, columns, examples, groups, duplicates; and how a collection is searched."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_server.engine.examples import rocchio
from support.pictures import photograph_jpegs
from support.server import ServerProcess, serving

INVALID, NOT_FOUND, PRECONDITION, OUT_OF_RANGE = 3, 5, 9, 11


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield CollectionServiceStub(channel)


@pytest.fixture
def fill(stub: Any) -> Iterator[Callable[..., str]]:
    """Makes collections of vectors from elsewhere, gone afterwards."""
    made: list[str] = []

    def make(rows: dict[str, tuple[float, ...]], labels: str = "", metric: Any = cpb.METRIC_COSINE) -> str:
        name = f"ask-{uuid.uuid4().hex[:8]}"
        made.append(name)
        dim = len(next(iter(rows.values())))
        stub.CreateCollection(cpb.CreateCollectionRequest(name=name, dim=dim, metric=metric))
        items = [
            cpb.UpsertItem(info=pb.ItemInfo(id=item_id, label=labels[i : i + 1] or None), vector=pack(*row))
            for i, (item_id, row) in enumerate(rows.items())
        ]
        for start in range(0, len(items), 500):
            request = cpb.UpsertItemsRequest(collection=name, items=items[start : start + 500])
            [reply] = stub.UpsertItems(iter([request]))
            assert not any(result.HasField("error") for result in reply.results)
        return name

    yield make
    for name in made:
        stub.DeleteCollection(cpb.DeleteCollectionRequest(name=name))


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def at(angle: float) -> tuple[float, float]:
    """A direction by its angle in degrees."""
    return float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))


def ask(name: str, k: int = 10, **fields: Any) -> cpb.SearchRequest:
    matrix = pb.Matrix(data=pack(*at(0)), dtype=pb.DTYPE_FLOAT32, rows=1, cols=2)
    queries = {} if "examples" in fields or "ids" in fields else {"vectors": matrix}
    return cpb.SearchRequest(**{"collection": name, "k": k, **queries, **fields})


def example(item_id: str = "", angle: float | None = None) -> cpb.ExampleRef:
    return cpb.ExampleRef(id=item_id) if angle is None else cpb.ExampleRef(vector=pack(*at(angle)))


def code_of(method: Any, request: Any) -> tuple[int, str]:
    with pytest.raises(grpc.RpcError) as caught:
        _ = [*method(request, timeout=30)] if isinstance(method, grpc.UnaryStreamMultiCallable) else method(request)
    error: Any = caught.value
    return error.code().value[0], error.details()


FAN = {f"a{angle}": at(angle) for angle in (10, 20, 40, 80, 160)}


# How a collection is searched


def test_what_a_collection_is_created_with_is_told(stub: Any) -> None:
    request = cpb.CreateCollectionRequest(
        name="made", dim=2, index="exact", indexed_attributes=["year", "exif.camera"], storage=cpb.STORAGE_FP16
    )
    made = stub.CreateCollection(request).collection
    assert (made.index, list(made.indexed_attributes), made.storage) == (
        "exact",
        ["year", "exif.camera"],
        cpb.STORAGE_FP16,
    )
    assert made.index_state.kind == "exact"
    assert not made.index_state.HasField("measured_recall")
    update = cpb.UpdateCollectionRequest(name="made", index="auto")
    changed = stub.UpdateCollection(update).collection
    assert (changed.index, list(changed.indexed_attributes)) == ("auto", ["year", "exif.camera"])
    changed = stub.UpdateCollection(
        cpb.UpdateCollectionRequest(name="made", indexed_attributes=cpb.AttributeNames())
    ).collection
    assert (changed.index, list(changed.indexed_attributes)) == ("auto", [])
    assert stub.GetCollection(cpb.GetCollectionRequest(name="made")).collection == changed
    stub.DeleteCollection(cpb.DeleteCollectionRequest(name="made"))


def test_a_bad_collection_is_refused(stub: Any) -> None:
    create = stub.CreateCollection
    assert code_of(create, cpb.CreateCollectionRequest(name="bad", dim=2, index="fastest!"))[0] == INVALID
    assert code_of(create, cpb.CreateCollectionRequest(name="bad", dim=2, storage=7))[0] == INVALID  # type: ignore[arg-type]
    assert code_of(create, cpb.CreateCollectionRequest(name="bad", dim=2, indexed_attributes=[""]))[0] == INVALID
    assert code_of(stub.UpdateCollection, cpb.UpdateCollectionRequest(name="nowhere", index="auto"))[0] == NOT_FOUND


# Thresholds and columns


def test_only_hits_that_reach_the_score_come(stub: Any, fill: Callable[..., str]) -> None:
    name = fill(FAN)
    reply = stub.Search(ask(name, min_score=float(np.cos(np.radians(30)))))
    assert [hit.info.id for hit in reply.results[0].hits] == ["a10", "a20"]
    assert [hit.info.id for hit in stub.Search(ask(name, k=1, min_score=0.0)).results[0].hits] == ["a10"]
    assert len(stub.Search(ask(name, min_score=-1.0)).results[0].hits) == 5
    assert not stub.Search(ask(name, min_score=1.0)).results[0].hits
    ids = stub.Search(ask(name, ids=pb.IdList(ids=["a10", "a80"]), min_score=0.8))
    assert [[hit.info.id for hit in result.hits] for result in ids.results] == [["a20", "a40"], []]
    assert code_of(stub.Search, ask(name, min_score=float("nan")))[0] == INVALID


def test_ids_only_are_two_columns_of_the_same_hits(stub: Any, fill: Callable[..., str]) -> None:
    name = fill(FAN, "xxyyz")
    whole, [columns] = stub.Search(ask(name)).results[0].hits, stub.Search(ask(name, ids_only=True)).results
    assert not columns.hits
    assert list(columns.ids) == [hit.info.id for hit in whole]
    np.testing.assert_allclose(columns.scores, [hit.score for hit in whole], rtol=1e-6)
    [group, *_] = stub.Search(ask(name, ids_only=True, group_by="label")).results[0].groups
    assert (group.value.string_value, group.hits[0].info) == ("x", pb.ItemInfo(id="a10"))


# Groups


def test_groups_are_told_by_value(stub: Any, fill: Callable[..., str]) -> None:
    name = fill(FAN, "xyxy")
    result = stub.Search(ask(name, k=5, group_by="label", group_size=2)).results[0]
    assert not result.hits
    assert [(g.value.string_value, [h.info.id for h in g.hits]) for g in result.groups] == [
        ("x", ["a10", "a40"]),
        ("y", ["a20", "a80"]),
    ]
    one_each = stub.Search(ask(name, k=1, group_by="label")).results[0].groups
    assert [(g.value.string_value, len(g.hits)) for g in one_each] == [("x", 1)]
    assert code_of(stub.Search, ask(name, group_by="label = 'x' or label"))[0] == INVALID
    assert code_of(stub.Search, ask(name, group_size=2))[0] == INVALID
    assert code_of(stub.Search, ask(name, k=10_000, group_by="label", group_size=2**31))[0] == OUT_OF_RANGE


# Examples


def test_examples_make_one_query_and_are_no_hits(stub: Any, fill: Callable[..., str]) -> None:
    name = fill(FAN)
    examples = cpb.Examples(positive=[example("a10"), example(angle=20)], negative=[example("a80")])
    [result] = stub.Search(ask(name, examples=examples)).results
    query = 2 * (np.array(at(10)) + at(20)) / 2 - np.array(at(80))
    expected = {item: float(np.dot(FAN[item], query) / np.linalg.norm(query)) for item in ("a20", "a40", "a160")}
    assert {hit.info.id: pytest.approx(hit.score, abs=1e-5) for hit in result.hits} == expected
    assert [hit.info.id for hit in result.hits] == ["a20", "a40", "a160"]
    alone = stub.Search(ask(name, examples=cpb.Examples(positive=[example(angle=21)]))).results[0]
    assert alone.hits[0].info.id == "a20"
    grouped = stub.Search(ask(name, examples=examples, group_by="label")).results[0]
    assert not grouped.groups  # nothing has a label


@pytest.mark.parametrize(
    ("examples", "code", "hint"),
    [
        (cpb.Examples(), INVALID, "no positive example"),
        (cpb.Examples(negative=[example("a10")]), INVALID, "no positive example"),
        (cpb.Examples(positive=[cpb.ExampleRef()]), INVALID, "positive example 0 is empty"),
        (cpb.Examples(positive=[cpb.ExampleRef(vector=pack(1))]), PRECONDITION, "positive example 0 has 1 numbers"),
        (cpb.Examples(positive=[cpb.ExampleRef(vector=b"1")]), INVALID, "4 bytes each"),
        (cpb.Examples(positive=[cpb.ExampleRef(image=pb.Image(data=b"x"))]), PRECONDITION, "from elsewhere"),
        (cpb.Examples(positive=[example("a10")] * 1025), OUT_OF_RANGE, "limit is 1024"),
        (
            cpb.Examples(positive=[example(angle=0)], negative=[example(angle=0), example(angle=0)]),
            0,
            "",
        ),
        (
            cpb.Examples(positive=[example(angle=0), example(angle=180)]),
            INVALID,
            "cancel each other out",
        ),
    ],
)
def test_bad_examples_are_refused(
    stub: Any, fill: Callable[..., str], examples: cpb.Examples, code: int, hint: str
) -> None:
    name = fill(FAN)
    if code:
        found, message = code_of(stub.Search, ask(name, examples=examples))
        assert (found, hint in message) == (code, True), message
    else:
        assert stub.Search(ask(name, examples=examples)).results[0].hits


def test_a_bad_example_is_named_in_the_error_of_the_query(stub: Any, fill: Callable[..., str]) -> None:
    name = fill(FAN)
    examples = cpb.Examples(positive=[example(angle=1)], negative=[example("a10"), example("gone")])
    [result] = stub.Search(ask(name, examples=examples)).results
    assert result.error.code == NOT_FOUND
    assert "negative example 1: no item 'gone'" in result.error.message
    zero = cpb.Examples(positive=[cpb.ExampleRef(vector=pack(0, 0))])
    [result] = stub.Search(ask(name, examples=zero, group_by="label")).results
    assert "positive example 0" in result.error.message


def test_image_examples_are_embedded(stub: Any) -> None:
    name = f"ask-{uuid.uuid4().hex[:8]}"
    stub.CreateCollection(cpb.CreateCollectionRequest(name=name))
    pictures = [pb.Image(data=data) for data in photograph_jpegs()]
    items = [cpb.UpsertItem(info=pb.ItemInfo(id=f"p{i}"), image=image) for i, image in enumerate(pictures)]
    list(stub.UpsertItems(iter([cpb.UpsertItemsRequest(collection=name, items=items)])))
    examples = cpb.Examples(positive=[cpb.ExampleRef(image=pictures[0])], negative=[cpb.ExampleRef(image=pictures[4])])
    hits = stub.Search(ask(name, k=2, examples=examples), timeout=60).results[0].hits
    assert [hit.info.id for hit in hits] == ["p0", "p1"]  # of the same photograph
    stub.DeleteCollection(cpb.DeleteCollectionRequest(name=name))


def test_rocchio_weighs_directions_for_cosine_and_vectors_otherwise() -> None:
    long, short = np.array([[100, 0]], np.float32), np.array([[0, 1]], np.float32)
    both = np.concatenate([long, short])
    np.testing.assert_allclose(rocchio(both, short[:0], "cosine"), [0.5, 0.5])
    np.testing.assert_allclose(rocchio(both, short[:0], "l2"), [50, 0.5])
    np.testing.assert_allclose(rocchio(long, short, "dot"), [200, -1])
    np.testing.assert_allclose(rocchio(long, short, "cosine"), [2, -1])


# Duplicates


def find(stub: Any, name: str, **fields: Any) -> tuple[list[cpb.FindDuplicatesResponse], cpb.DuplicatesSummary, Any]:
    events = list(stub.FindDuplicates(cpb.FindDuplicatesRequest(collection=name, **fields), timeout=60))
    kinds = [event.WhichOneof("event") for event in events]
    summary = kinds.index("summary")
    assert set(kinds[:summary]) == {"progress"}
    assert set(kinds[summary + 1 :]) <= {"group"}
    groups = [[hit.info.id for hit in event.group.items] for event in events[summary + 1 :]]
    return events, events[summary].summary, groups


def test_duplicates_are_linked_into_groups(stub: Any, fill: Callable[..., str]) -> None:
    rows = {f"i{angle:03}": at(angle) for angle in (0, 10, 20, 90, 100, 180)}
    name = fill(rows, "aaaabb")
    events, summary, groups = find(stub, name, min_score=float(np.cos(np.radians(11))))
    assert groups == [["i000", "i010", "i020"], ["i090", "i100"]]
    chain = [hit.score for hit in events[-2].group.items]
    np.testing.assert_allclose(chain, np.cos(np.radians([0, 10, 20])), atol=1e-6)  # the last one by way of the second
    assert (summary.items, summary.groups, summary.duplicates, summary.truncated) == (6, 2, 3, 0)
    assert summary.exact
    assert events[0].progress == cpb.DuplicatesProgress(done=0, total=6)
    assert find(stub, name, min_score=0.9, where="label = 'a'")[2] == [["i000", "i010", "i020"]]
    assert find(stub, name, min_score=1.01)[2] == []
    _, nothing, _ = find(stub, name, where="label = 'none'")
    assert (nothing.items, nothing.groups) == (0, 0)


def test_scores_that_make_duplicates_fit_the_metric(stub: Any, fill: Callable[..., str]) -> None:
    near = {"a": (100.0, 0.0), "b": (90.0, 0.0), "c": (0.0, 100.0)}
    assert find(stub, fill(near))[1].min_score == pytest.approx(0.95)
    name = fill(near, metric=cpb.METRIC_L2)
    _, summary, groups = find(stub, name)
    assert groups == [["a", "b"]]
    assert summary.min_score == pytest.approx(-np.sqrt(0.1) * 290 / 3, rel=1e-6)
    assert find(stub, name, min_score=-5.0)[2] == []
    name = fill(near, metric=cpb.METRIC_DOT)
    code, message = code_of(stub.FindDuplicates, cpb.FindDuplicatesRequest(collection=name))
    assert (code, "min_score is needed" in message) == (INVALID, True)
    assert find(stub, name, min_score=5000.0)[2] == [["a", "b"]]
    for fields in ({"min_score": float("nan")}, {"max_neighbours": 10_000, "min_score": 1.0}, {"where": "label ="}):
        bad = cpb.FindDuplicatesRequest(collection=name, **fields)
        assert code_of(stub.FindDuplicates, bad)[0] == INVALID
    assert code_of(stub.FindDuplicates, cpb.FindDuplicatesRequest(collection="nowhere"))[0] == NOT_FOUND


def test_neighbours_that_were_cut_are_told(stub: Any, fill: Callable[..., str]) -> None:
    # A fan of 330 degrees: each has two neighbours on either side, save the four at its ends.
    name = fill({f"i{i:04}": at(0.3 * i) for i in range(1100)})
    score = float(np.cos(np.radians(0.7)))
    assert find(stub, name, min_score=score, max_neighbours=3)[1].truncated == 1096
    events, summary, _ = find(stub, name, min_score=score, max_neighbours=4)
    assert (summary.truncated, summary.groups, summary.duplicates) == (0, 1, 1099)
    parts = [event.group for event in events if event.WhichOneof("event") == "group"]
    assert [(len(part.items), part.more) for part in parts] == [(1000, True), (100, False)]
    assert [event.progress.done for event in events if event.WhichOneof("event") == "progress"][-1] == 1100


async def test_a_search_for_duplicates_that_nobody_wants_ends(tmp_path: Path) -> None:
    searched = 0
    async with serving(tmp_path / "data") as running:
        store: Any = running.engine.store
        search = store.search

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal searched
            searched += 1
            return search(*arguments, **options)

        store.search = counting
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            asking: Any = CollectionServiceStub(channel)
            await asking.CreateCollection(cpb.CreateCollectionRequest(name="c", dim=2))
            rng = np.random.default_rng(0)
            items = [cpb.UpsertItem(info=pb.ItemInfo(id=f"{i}"), vector=pack(*rng.random(2))) for i in range(20 * 256)]

            async def messages() -> Any:
                for start in range(0, len(items), 1024):
                    yield cpb.UpsertItemsRequest(collection="c", items=items[start : start + 1024])

            async for _ in asking.UpsertItems(messages()):
                pass
            call = asking.FindDuplicates(cpb.FindDuplicatesRequest(collection="c", min_score=0.9999))
            while (await call.read()).progress.done == 0:
                pass
            call.cancel()
            await asyncio.sleep(0.2)
            at_cancel = searched
            await asyncio.sleep(0.5)
            assert searched == at_cancel < 20
