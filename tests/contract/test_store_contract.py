"""What every store engine must do, checked against brute force."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from contract.store_model import Model, check_search
from likewise_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LikewiseError,
    NotFound,
    OutOfRange,
    Unavailable,
)
from likewise_server.store import ENGINES, Metric, NewItem, NewLabel, Outcome, Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIM = 8
METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")
FILTERS = (
    "",
    "label = 'cat'",
    "label is null",
    "year >= 2020 and not exif.camera = 'Canon'",
    "year in (2019, 2021) or label like 'D%'",
    "id > 'i5'",
    "year = 1",
)


@pytest.fixture(params=list(ENGINES))
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    opened: list[Store] = []

    def open_again() -> Store:
        while opened:
            opened.pop().close()
        opened.append(open_store(tmp_path / "data", request.param))
        return opened[-1]

    yield open_again
    while opened:
        opened.pop().close()


@pytest.fixture
def store(reopen: Callable[[], Store]) -> Store:
    return reopen()


def vector(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array([*values, *([0.0] * (DIM - len(values)))], np.float32)


def made_up(n: int, seed: int = 0) -> list[NewItem]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-3, 4, (n, DIM)).astype(np.float32) + np.float32(0.5)  # a coarse grid: many ties
    labels = ["cat", "dog", None]
    return [
        NewItem(
            f"i{i}",
            rows[i],
            label=labels[i % 3],
            attributes={"year": 2018 + i % 5, "exif": {"camera": ["Canon", "Nikon"][i % 2]}} if i % 7 else {},
            uri=f"file:///{i}.jpg",
            content_hash=f"h{i}",
        )
        for i in range(n)
    ]


def filled(store: Store, metric: Metric, items: list[NewItem]) -> Model:
    model = Model(metric)
    store.create_collection("c", dim=DIM, metric=metric, fingerprint="f")
    assert store.upsert("c", items, fingerprint="f") == [model.upsert(item) for item in items]
    return model


def check_everything(store: Store, model: Model, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    queries = np.concatenate(
        [
            rng.integers(-3, 4, (22, DIM)).astype(np.float32) + np.float32(0.25),
            np.stack([item.vector for item in model.items.values()][:3]),
        ]
    )
    for where in FILTERS:
        for k in (1, 7, 1000):
            check_search(model, store.search("c", queries, k, where=where), queries, k, where)
        assert store.count("c", where) == len(model.matching(where))
    exclude = [*list(model.items)[:5], "nobody"]
    for where in FILTERS[:2]:
        result = store.search("c", queries, 7, where=where, exclude_ids=exclude)
        check_search(model, result, queries, 7, where, exclude)
    assert store.get_collection("c").count == len(model.items)


@pytest.mark.parametrize("metric", METRICS)
def test_search_is_brute_force_through_every_change(reopen: Callable[[], Store], metric: Metric) -> None:
    store = reopen()
    model = filled(store, metric, made_up(300))
    check_everything(store, model)
    store.checkpoint("c")
    check_everything(store, model)
    changed = made_up(90, seed=5)
    assert store.upsert("c", changed, fingerprint="f") == [model.upsert(item) for item in changed]
    gone = [f"i{i}" for i in range(60, 140)]
    assert store.delete("c", [*gone, "nobody"]) == len(gone)
    for each in gone:
        del model.items[each]
    check_everything(store, model)
    store = reopen()
    check_everything(store, model)
    assert store.fsck().ok


@pytest.mark.parametrize("metric", METRICS)
def test_ties_come_in_order_of_insertion(store: Store, metric: Metric) -> None:
    items = [NewItem(f"{i:03}", vector(1, 2, 3)) for i in range(150)]
    model = filled(store, metric, items[:100])
    store.checkpoint()
    store.upsert("c", items[100:], fingerprint="f")
    for item in items[100:]:
        model.upsert(item)
    for n in (1, 30):  # alone and in a batch the sums are made differently
        queries = np.repeat(vector(1, 2, 2)[np.newaxis], n, axis=0)
        check_search(model, store.search("c", queries, 10), queries, 10)


def test_l2_score_is_minus_the_distance(store: Store) -> None:
    filled(store, "l2", [NewItem("a", vector(3, 4)), NewItem("b", vector(0, 1))])
    hits = store.search("c", vector(0, 0)[np.newaxis], 5).hits[0]
    assert [(hit.item.id, hit.score) for hit in hits] == [("b", -1.0), ("a", -5.0)]


@pytest.mark.parametrize("metric", METRICS)
def test_scores_below_the_least_are_left_out(store: Store, metric: Metric) -> None:
    model = filled(store, metric, made_up(60))
    queries = np.stack([item.vector for item in made_up(4, seed=2)])
    for where in ("", "label = 'cat'"):
        scores = [score for query in queries for _, score in model.search(query, 60, where)]
        for least in (float(np.median(scores)), max(scores) + 1, min(scores) - 1):
            found = store.search("c", queries, 20, where=where, min_score=least)
            check_search(model, found, queries, 20, where, min_score=least)
    with pytest.raises(InvalidArgument):
        store.search("c", queries, 1, min_score=float("nan"))


def test_a_score_that_is_just_reached_counts_and_l2_scores_are_negative(store: Store) -> None:
    filled(store, "l2", [NewItem("near", vector(3, 4)), NewItem("far", vector(6, 8))])
    found = store.search("c", vector(0, 0)[np.newaxis], 5, min_score=-5.0).hits[0]
    assert [(hit.item.id, hit.score) for hit in found] == [("near", -5.0)]
    assert store.search("c", vector(0, 0)[np.newaxis], 5, min_score=5.0).hits == [[]]


def test_bare_hits_are_the_same_with_ids_alone(store: Store) -> None:
    model = filled(store, "cosine", made_up(40))
    queries = np.stack([item.vector for item in made_up(3, seed=2)])
    for where in ("", "year >= 2020"):
        found = store.search("c", queries, 7, where=where, bare=True)
        check_search(model, found, queries, 7, where)
        for hit in (hit for hits in found.hits for hit in hits):
            assert (hit.item.label, hit.item.attributes, hit.item.uri, hit.item.content_hash) == (None, {}, "", "")


MIXED: tuple[Any, ...] = (
    1,
    1.5,
    -3,
    True,
    False,
    None,
    "1",
    "",
    "Canon",
    "canon eos",
    "é",
    [1],
    {"deep": 2},
    {"deep": None},
)
MIXED_FILTERS = (
    *(f"x {op} {value}" for op in ("=", "!=", "<", "<=", ">", ">=") for value in ("1", "'canon'")),
    *(f"{no}x = {value}" for no in ("", "not ") for value in ("true", "false", "'1'", "1.5")),
    *(f"x {no}in (1, '1', true, -3)" for no in ("", "not ")),
    *(f"x {no}like '{pattern}'" for no in ("", "not ") for pattern in ("canon%", "%", "_", "1", "É%")),
    *(f"{no}{field} is {null}" for no in ("", "not ") for field in ("x", "x.deep") for null in ("null", "not null")),
    *(f"{no}exists({field})" for no in ("", "not ") for field in ("x", "x.deep", "y")),
    "x.deep = 2",
    "x.deep != 2 or x < 1 and not y = 3",
    "not (x > 0 or y in (1, 2))",
    "x = 1 or y = 2 or label = 'cat'",
)


def test_indexed_attributes_change_no_answer(store: Store) -> None:
    items = [
        NewItem(
            f"i{n}",
            vector(n % 7 + 1, n),
            "cat" if n % 3 else None,
            {"y": n % 4} if value is None and n % 2 else {"x": value, "y": n % 4},
        )
        for n, value in enumerate(MIXED * 4)
    ]
    model = filled(store, "cosine", items)

    def check() -> None:
        for where in MIXED_FILTERS:
            matching = model.matching(where)
            assert store.count("c", where) == len(matching), where
            found = [item.id for item in store.list_items("c", where=where, page_size=1000)[0]]
            assert found == sorted(item.id for item in matching), where
        query = vector(1, 2)[np.newaxis]
        for where in MIXED_FILTERS[:10]:
            check_search(model, store.search("c", query, 9, where=where), query, 9, where)

    check()
    assert store.alter_collection("c", indexed=["x", "x.deep", "y"]).indexed == ("x", "x.deep", "y")
    check()
    changed = [NewItem(item.id, item.vector, item.label, {"x": MIXED[n % 5]}) for n, item in enumerate(items[:20])]
    assert store.upsert("c", changed, fingerprint="f") == [model.upsert(item) for item in changed]
    gone = model.matching("x = 1")
    assert store.delete("c", where="x = 1") == len(gone)
    for item in gone:
        del model.items[item.id]
    check()
    assert store.fsck().problems == []
    store.alter_collection("c", indexed=["y"])
    check()


def test_hits_carry_their_items(store: Store) -> None:
    item = NewItem("a", vector(1), "cat", {"n": 1, "deep": {"list": [1, None, "x"]}}, "u", "h")
    filled(store, "cosine", [item])
    found = store.search("c", vector(2)[np.newaxis], 1).hits[0][0].item
    assert (found.id, found.label, found.attributes, found.uri, found.content_hash) == (
        ("a", "cat", item.attributes, "u", "h")
    )
    assert found.vector is None


def test_empty_searches(store: Store) -> None:
    store.create_collection("c", dim=DIM, fingerprint="f")
    assert store.search("c", vector(1)[np.newaxis], 3).hits == [[]]
    assert store.search("c", np.empty((0, DIM), np.float32), 3).hits == []
    assert store.search("c", vector(1)[np.newaxis], 3, where="x = 1").hits == [[]]


@pytest.mark.parametrize(
    ("queries", "k", "error"),
    [
        (np.full((1, DIM), np.nan, np.float32), 1, InvalidArgument),
        (np.full((1, DIM), np.inf, np.float32), 1, InvalidArgument),
        (np.zeros((1, DIM), np.float32), 1, InvalidArgument),
        (np.ones((1, DIM + 1), np.float32), 1, FailedPrecondition),
        (np.ones(DIM, np.float32), 1, InvalidArgument),
        (np.ones((1, DIM), np.float32), 0, InvalidArgument),
        (np.ones((1, DIM), np.float32), 10_001, InvalidArgument),
    ],
)
def test_bad_searches_are_refused(
    store: Store, queries: np.ndarray[tuple[int, int], np.dtype[np.float32]], k: int, error: type[LikewiseError]
) -> None:
    filled(store, "cosine", made_up(3))
    with pytest.raises(error):
        store.search("c", queries, k)


def test_another_space_is_refused_naming_both(store: Store) -> None:
    filled(store, "cosine", made_up(3))
    with pytest.raises(FailedPrecondition, match=r"'other'.*'f'"):
        store.upsert("c", made_up(3), fingerprint="other")
    with pytest.raises(FailedPrecondition, match=r"'other'.*'f'"):
        store.search("c", np.ones((1, DIM), np.float32), 1, fingerprint="other")


def test_a_bad_item_is_an_entry_and_its_neighbours_are_stored(store: Store) -> None:
    good = made_up(2)
    bad: list[tuple[NewItem, type[LikewiseError]]] = [
        (NewItem("nan", vector(np.nan)), InvalidArgument),
        (NewItem("inf", vector(np.inf)), InvalidArgument),
        (NewItem("huge", vector(1e30)), InvalidArgument),
        (NewItem("zero", vector()), InvalidArgument),
        (NewItem("short", np.ones(DIM - 1, np.float32)), FailedPrecondition),
        (NewItem("square", np.ones((1, DIM), np.float32)), InvalidArgument),
        (NewItem("", vector(1)), InvalidArgument),
        (NewItem("é" * 513, vector(1)), InvalidArgument),
        (NewItem("nul\0", vector(1)), InvalidArgument),
        (NewItem("\ud800", vector(1)), InvalidArgument),
        (NewItem("label", vector(1), label="\udfff"), InvalidArgument),
        (NewItem("a", vector(1), attributes={"x": float("nan")}), InvalidArgument),
        (NewItem("a", vector(1), attributes={"x": {1: 2}}), InvalidArgument),
        (NewItem("a", vector(1), attributes={"x": b"bytes"}), InvalidArgument),
        (NewItem("a", vector(1), attributes={"x": "\ud800"}), InvalidArgument),
        (NewItem("a", vector(1), attributes={"x": "y" * 70_000}), OutOfRange),
    ]
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    bad.append((NewItem("a", vector(1), attributes={"x": deep}), InvalidArgument))
    store.create_collection("c", dim=DIM, fingerprint="f")
    entries = store.upsert("c", [good[0], *(item for item, _ in bad), good[1]], fingerprint="f")
    assert [entries[0], entries[-1]] == [Outcome.CREATED, Outcome.CREATED]
    assert [type(entry) for entry in entries[1:-1]] == [error for _, error in bad]
    assert store.count("c") == 2


def test_zero_vectors_are_fine_without_the_cosine(store: Store) -> None:
    model = filled(store, "dot", [NewItem("zero", vector()), NewItem("one", vector(1))])
    queries = np.stack([vector(1), vector(), vector(-1)])
    check_search(model, store.search("c", queries, 2), queries, 2)


def test_tiny_and_large_vectors_keep_their_order(store: Store) -> None:
    items = [NewItem(f"{i}", vector(1e-30 * (i + 1), 1e-32 * i)) for i in range(60)]
    items += [NewItem(f"L{i}", vector(1e14, 1e13 * i)) for i in range(5)]
    for metric in METRICS:
        store.create_collection(metric, dim=DIM, metric=metric, fingerprint="f")
        model = Model(metric)
        assert store.upsert(metric, items, fingerprint="f") == [model.upsert(item) for item in items]
        queries = np.stack([vector(1e-30), vector(1e10, 1), vector(1, -1)])
        check_search(model, store.search(metric, queries, 4), queries, 4)


def test_outcomes_and_duplicates_in_one_call(store: Store) -> None:
    store.create_collection("c", dim=DIM, fingerprint="f")
    item, other = NewItem("a", vector(1), "x"), NewItem("a", vector(2), "y")
    assert store.upsert("c", [item, other], fingerprint="f") == [Outcome.CREATED, Outcome.UPDATED]
    assert store.upsert("c", [other], fingerprint="f") == [Outcome.UNCHANGED]
    (stored,) = store.get("c", ["a"], vectors=True)
    assert stored is not None
    assert stored.label == "y"
    np.testing.assert_array_equal(stored.vector, vector(2))
    for field in ({"label": "z"}, {"attributes": {"n": 1}}, {"uri": "u"}, {"content_hash": "h"}):
        changed = NewItem(**{"id": "a", "vector": vector(2), "label": "y"} | field)
        assert store.upsert("c", [changed], fingerprint="f") == [Outcome.UPDATED]
    assert store.count("c") == 1
    assert len(store.search("c", vector(1)[np.newaxis], 10).hits[0]) == 1


def test_the_last_of_several_with_one_id_is_kept_and_each_has_its_outcome(store: Store) -> None:
    rng = np.random.default_rng(0)
    model = filled(store, "dot", [NewItem("a", vector(1), "0"), NewItem("b", vector(1), "0")])
    for _ in range(40):
        items = [
            NewItem(str(rng.choice(list("abc"))), vector(1), str(rng.integers(2))) for _ in range(rng.integers(1, 8))
        ]
        assert store.upsert("c", items, fingerprint="f") == [model.upsert(item) for item in items]
        query = vector(1)[np.newaxis]  # all tie: the order is that of the last changes
        check_search(model, store.search("c", query, 5), query, 5)
        assert store.count("c") == len(model.items)


@pytest.mark.parametrize("odd", ["it's", 'say "hi"', "back`tick", "猫 🐈", "a\nb", "%", "é" * 512, "[1]", "1", "-- x"])
def test_odd_ids_are_ids_like_any_other(store: Store, odd: str) -> None:
    filled(store, "cosine", [NewItem(odd, vector(1), odd, {"x": odd}), NewItem("plain", vector(0, 1))])
    quoted = odd.replace("'", "''")
    for where in (f"id = '{quoted}'", f"label = '{quoted}'", f"x = '{quoted}'"):
        assert [item.id for item in store.list_items("c", where=where)[0]] == [odd]
    assert store.search("c", vector(1)[np.newaxis], 1, exclude_ids=[odd]).hits[0][0].item.id == "plain"
    assert store.get("c", [odd, "nobody", "\ud800", "", odd])[1:4] == [None, None, None]
    assert store.delete("c", [odd, "\ud800"]) == 1
    assert store.get("c", [odd]) == [None]


def test_vectors_come_back_as_given(store: Store) -> None:
    items = made_up(5)
    filled(store, "cosine", items)
    for item, stored in zip(items, store.get("c", [item.id for item in items], vectors=True), strict=True):
        assert stored is not None
        np.testing.assert_array_equal(stored.vector, item.vector)


def test_delete_takes_ids_a_filter_or_both(store: Store) -> None:
    filled(store, "cosine", made_up(30))
    with pytest.raises(InvalidArgument):
        store.delete("c")
    assert store.delete("c", []) == 0
    assert store.delete("c", ["i0", "i1"], where="label = 'cat'") == 1
    assert store.delete("c", where="label = 'cat'") == 9
    assert store.delete("c", where="id is not null") == 20
    assert store.count("c") == 0


@pytest.mark.parametrize("metric", METRICS)
def test_new_labels_change_nothing_else_and_every_search_sees_them(reopen: Callable[[], Store], metric: Metric) -> None:
    store = reopen()
    model = filled(store, metric, made_up(300))
    store.checkpoint("c")
    check_everything(store, model)  # so that filters are remembered
    for labels in (
        {f"i{i}": "cat" for i in range(0, 90, 2)},
        {f"i{i}": None for i in range(60, 150)},
        {f"i{i}": "Dög" for i in range(290, 300)},
    ):
        wanted = [NewLabel(item_id, label) for item_id, label in labels.items()]
        assert store.relabel("c", wanted) == [model.relabel(*each) for each in labels.items()]
        check_everything(store, model)
    before = store.get_collection("c").bytes_by_part
    store.checkpoint("c")
    assert store.get_collection("c").bytes_by_part["segments"] == before["segments"]
    assert store.get_collection("c").bytes_by_part["delta"] == before["delta"]
    found = store.labelled("c")
    assert (found.ids, found.labels) == (
        [item.id for item in model.items.values() if item.label],
        [item.label for item in model.items.values() if item.label],
    )
    store = reopen()
    check_everything(store, model)
    for item, kept in zip(store.get("c", list(model.items), vectors=True), model.items.values(), strict=True):
        assert item is not None
        assert (item.label, item.attributes, item.uri, item.content_hash) == (
            kept.label,
            kept.attributes,
            kept.uri,
            kept.content_hash,
        )
        np.testing.assert_array_equal(item.vector, kept.vector)
    assert store.fsck().ok


def test_labels_of_items_that_are_not_there_or_not_as_they_were_read_are_refused_alone(store: Store) -> None:
    filled(store, "cosine", [NewItem(i, vector(1, 2), None, {"n": 1, "gone": 2, "none": None}) for i in "abcdef"])
    read = {item.id: item for item in store.list_items("c", vectors=True)[0]}
    store.relabel("c", [NewLabel("b", "by hand")])
    store.upsert("c", [NewItem("c", vector(9), None, {"n": 1, "gone": 2, "none": None})], fingerprint="f")
    store.upsert("c", [NewItem("d", vector(1, 2), None, {"n": 2})], fingerprint="f")
    store.delete("c", ["e"])
    merged = {"gone": None, "score": 0.5}
    outcomes = store.relabel("c", [NewLabel(i, "x", merged, read[i]) for i in "abcdef"])
    kinds = [outcome if isinstance(outcome, Outcome) else type(outcome) for outcome in outcomes]
    assert kinds == [
        Outcome.UPDATED,
        FailedPrecondition,
        FailedPrecondition,
        FailedPrecondition,
        NotFound,
        Outcome.UPDATED,
    ]
    assert "Read it again" in str(outcomes[1])
    found = {item.id: item for item in store.get("c", list("abcdf")) if item}
    assert {i: item.label for i, item in found.items()} == {"a": "x", "b": "by hand", "c": None, "d": None, "f": "x"}
    assert found["a"].attributes == {"n": 1, "none": None, "score": 0.5}
    assert found["a"].updated_at > read["a"].updated_at
    assert store.count("c", "label = 'x' and score = 0.5 and not exists(gone)") == 2


def test_of_two_labels_for_an_item_the_later_stays(store: Store) -> None:
    filled(store, "cosine", [NewItem("a", vector(1), "x"), NewItem("b", vector(2), "x")])
    twice = [NewLabel("a", "y"), NewLabel("a", None), NewLabel("b", "x"), NewLabel("nobody", "x")]
    *outcomes, missing = store.relabel("c", twice)
    assert outcomes == [Outcome.UPDATED, Outcome.UPDATED, Outcome.UNCHANGED]
    assert isinstance(missing, NotFound)
    assert [item.label for item in store.get("c", ["a", "b"]) if item] == [None, "x"]
    assert store.relabel("c", []) == []
    for bad in (NewLabel("a", "x" * 70_000), NewLabel("a", "nul\0"), NewLabel("a", "x", {"n": float("nan")})):
        with pytest.raises(InvalidArgument):
            store.relabel("c", [NewLabel("b", "z"), bad])
    assert store.count("c", "label = 'z'") == 0
    with pytest.raises(NotFound):
        store.relabel("nowhere", [NewLabel("a", "y")])


def test_attributes_that_a_label_makes_too_large_are_that_items_error(store: Store) -> None:
    filled(store, "cosine", [NewItem("a", vector(1), None, {"t": "x" * 60_000}), NewItem("b", vector(2))])
    first, second = store.relabel("c", [NewLabel(i, "y", {"u": "x" * 10_000}) for i in "ab"])
    assert isinstance(first, OutOfRange)
    assert second is Outcome.UPDATED
    assert [item.label for item in store.get("c", ["a", "b"]) if item] == [None, "y"]


def test_labelled_and_mean(store: Store) -> None:
    items = made_up(30)
    filled(store, "cosine", items)
    wanted = [item for item in items if item.label]
    found = store.labelled("c")
    assert (found.ids, found.labels) == ([i.id for i in wanted], [i.label for i in wanted])
    assert found.content_hashes == [i.content_hash for i in wanted]
    np.testing.assert_array_equal(found.vectors, np.stack([i.vector for i in wanted]))
    assert set(store.labelled("c", where="label != 'dog'").labels) == {"cat"}
    assert store.labelled("c", where="label = 'x'").vectors.shape == (0, DIM)
    rows = np.stack([item.vector for item in items])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(store.mean_vector("c"), units.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(store.mean_vector("c", limit=10), units[:10].mean(axis=0), atol=1e-6)
    store.create_collection("empty", dim=DIM, fingerprint="f")
    np.testing.assert_array_equal(store.mean_vector("empty"), np.zeros(DIM))


def test_pages_show_each_lasting_item_once_whatever_is_written_between(store: Store) -> None:
    filled(store, "cosine", made_up(100))
    seen: list[str] = []
    token, page = "", 0
    while token or not page:
        found, token = store.list_items("c", page_size=9, page_token=token)
        seen += [item.id for item in found]
        page += 1
        store.upsert("c", [NewItem(f"new{page}", vector(1)), NewItem(seen[0], vector(1, page))], fingerprint="f")
        store.upsert("c", [NewItem("i99", vector(page, 1))], fingerprint="f")
    assert len(seen) == len(set(seen))
    assert {f"i{i}" for i in range(100)} <= set(seen)
    assert seen == sorted(seen)


def test_page_tokens_belong_to_their_listing(store: Store) -> None:
    filled(store, "cosine", made_up(10))
    _, token = store.list_items("c", page_size=2)
    assert [item.id for item in store.list_items("c", page_size=2, page_token=token)[0]] == ["i2", "i3"]
    for bad in (token + "A", token[:-3], "x", "é", "W10", token[::-1]):
        with pytest.raises(InvalidArgument):
            store.list_items("c", page_size=2, page_token=bad)
    with pytest.raises(InvalidArgument):
        store.list_items("c", where="id = 'i1'", page_size=2, page_token=token)
    for bad in ("[" * 20_000, '["x"', '"' * 30):
        with pytest.raises(InvalidArgument):
            store.list_items("c", page_token=base64.urlsafe_b64encode(bad.encode()).decode())
    with pytest.raises(InvalidArgument):
        store.list_items("c", page_size=0)
    found, token = store.list_items("c", page_size=10)
    assert (len(found), token) == (10, "")


def test_collections_are_created_once_per_request(store: Store) -> None:
    made = store.create_collection("c", dim=4, fingerprint="f", backbone="b", request_id="r")
    assert (made.dim, made.metric, made.fingerprint, made.backbone, made.count) == (4, "cosine", "f", "b", 0)
    assert store.create_collection("c", dim=4, fingerprint="f", backbone="b", request_id="r") == made
    for kwargs in ({"request_id": "r", "dim": 5}, {"request_id": "s", "dim": 4}, {"dim": 4}):
        with pytest.raises(AlreadyExists):
            store.create_collection("c", fingerprint="f", backbone="b", **kwargs)
    for other in ({"index": "exact"}, {"indexed": ["year"]}, {"storage": "fp16"}):
        with pytest.raises(AlreadyExists, match="other settings"):
            store.create_collection("c", dim=4, fingerprint="f", backbone="b", request_id="r", **other)


def test_how_a_collection_is_searched_is_kept_and_can_be_changed(reopen: Callable[[], Store]) -> None:
    store = reopen()
    plain = store.create_collection("plain", dim=DIM, fingerprint="f")
    assert (plain.index, plain.indexed, plain.storage) == ("auto", (), "fp32")
    names = ["year", "exif.camera", "a-b_c.0", "year"]
    store.create_collection("c", dim=DIM, fingerprint="f", index="exact", indexed=names, storage="fp16")
    store = reopen()
    made = store.get_collection("c")
    assert (made.index, made.indexed, made.storage) == ("exact", ("year", "exif.camera", "a-b_c.0"), "fp16")
    assert store.alter_collection("c") == made
    assert store.alter_collection("c", index="auto").index == "auto"
    changed = store.alter_collection("c", indexed=["month"])
    assert (changed.index, changed.indexed, changed.storage) == ("auto", ("month",), "fp16")
    assert store.alter_collection("c", indexed=[]).indexed == ()
    for bad in ({"index": "no such"}, {"indexed": ["label"]}, {"index": "exact", "indexed": ["a b"]}):
        with pytest.raises(InvalidArgument):
            store.alter_collection("c", **bad)
    assert store.get_collection("c").index == "auto"
    with pytest.raises(NotFound):
        store.alter_collection("nobody", indexed=["x"])


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "a\0", "\x7f", "\ud800"])
def test_bad_collection_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidArgument):
        store.create_collection(name, dim=4, fingerprint="f")
    with pytest.raises((NotFound, InvalidArgument)):
        store.get_collection(name)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dim": 0},
        {"dim": 100_000},
        {"metric": "hamming"},
        {"storage": "int4"},
        {"index": ""},
        {"index": "IVF 4"},
        {"index": "Flat\n"},
        {"index": "F" * 65},
        {"indexed": ["label"]},
        {"indexed": ["id"]},
        {"indexed": ["uri"]},
        {"indexed": [""]},
        {"indexed": ["a..b"]},
        {"indexed": ["a."]},
        {"indexed": ["naïve"]},
        {"indexed": ["it's"]},
        {"indexed": ['a"b']},
        {"indexed": ["a\n"]},
        {"indexed": ["x" * 129]},
        {"indexed": [f"a{n}" for n in range(17)]},
    ],
)
def test_bad_specifications_are_refused(store: Store, kwargs: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        store.create_collection("c", **({"dim": 4, "fingerprint": "f"} | kwargs))  # type: ignore[arg-type]
    assert store.list_collections(10) == ([], "")


def test_what_never_changes_is_known_until_the_collection_is_deleted(store: Store) -> None:
    with pytest.raises(NotFound):
        store.space_of("c")
    assert store.known_space("c") is None
    store.create_collection("c", dim=DIM, metric="l2", fingerprint="f")
    space = store.space_of("c")
    assert (space.name, space.dim, space.metric, space.fingerprint, space.backbone) == ("c", DIM, "l2", "f", "")
    assert store.known_space("c") == space
    store.delete_collection("c")
    assert store.known_space("c") is None
    with pytest.raises(NotFound):
        store.space_of("c")
    store.create_collection("c", dim=3, fingerprint="g")
    assert store.space_of("c").dim == 3
    assert store.space_of("c").created_at > space.created_at


def test_collections_are_listed_by_name_and_deleted_with_all_they_hold(reopen: Callable[[], Store]) -> None:
    store = reopen()
    names = ["../../etc", "a/b", "c", "ü 猫", "z" * 128]
    for name in names:
        store.create_collection(name, dim=DIM, fingerprint="f")
        store.upsert(name, made_up(3), fingerprint="f")
    first, token = store.list_collections(3)
    second, end = store.list_collections(3, token)
    assert [info.name for info in first + second] == sorted(names)
    assert end == ""
    store.save_head("c", "h", "linear", {}, b"x")
    store.checkpoint()
    store.delete_collection("c")
    for call in (store.get_collection, store.count, store.delete_collection, store.labelled):
        with pytest.raises(NotFound):
            call("c")
    store.create_collection("c", dim=DIM, fingerprint="f")
    assert store.search("c", vector(1)[np.newaxis], 5).hits == [[]]
    assert store.list_heads("c") == ([], "")
    assert len(store.search("a/b", vector(1)[np.newaxis], 5).hits[0]) == 3
    assert reopen().fsck().problems == []


def test_head_versions_only_grow(reopen: Callable[[], Store]) -> None:
    store = reopen()
    store.create_collection("c", dim=DIM, fingerprint="f")
    one = store.save_head("c", "h", "linear", {"classes": ["a"]}, b"\0one", "r1")
    assert (one.version, one.kind, one.meta, one.blob) == (1, "linear", {"classes": ["a"]}, b"\0one")
    assert store.save_head("c", "h", "linear", {"other": 1}, b"other", "r1") == one
    assert store.head_of_request("c", "h", "r1") == one
    assert {store.head_of_request("c", *asked) for asked in (("h", "r2"), ("g", "r1"), ("h", ""))} == {None}
    assert store.save_head("c", "h", "knn", {}, b"two").version == 2
    assert store.save_head("c", "h", "knn", {}, b"three").version == 3
    assert store.delete_head("c", "h", 3) == 1
    assert store.get_head("c", "h").blob == b"two"
    assert store.get_head("c", "h", 1) == one
    store = reopen()
    assert store.save_head("c", "h", "knn", {}, b"four").version == 4
    assert store.delete_head("c", "h") == 3
    assert store.save_head("c", "h", "knn", {}, b"five").version == 5
    assert store.save_head("c", "g", "knn", {}, b"x").version == 1
    for call in (store.get_head, store.delete_head):
        with pytest.raises(NotFound):
            call("c", "h", 1)
    with pytest.raises(NotFound):
        store.get_head("c", "nobody")
    with pytest.raises(InvalidArgument):
        store.save_head("c", "", "knn", {}, b"")
    with pytest.raises(InvalidArgument):
        store.save_head("c", "h", "knn", {"x": float("nan")}, b"")


def test_heads_are_listed_in_pages(store: Store) -> None:
    store.create_collection("c", dim=DIM, fingerprint="f")
    for name in ("b", "a"):
        for _ in range(3):
            store.save_head("c", name, "knn", {}, b"blob")
    found, token = store.list_heads("c", page_size=4)
    rest, end = store.list_heads("c", page_size=4, page_token=token)
    assert [(h.name, h.version) for h in found + rest] == [(n, v) for n in "ab" for v in (1, 2, 3)]
    assert (end, found[0].blob) == ("", b"")
    assert [h.version for h in store.list_heads("c", name="b", blobs=True)[0] if h.blob == b"blob"] == [1, 2, 3]


def test_text_and_numbers_no_store_can_hold_are_refused(store: Store) -> None:
    store.create_collection("c", dim=DIM, fingerprint="f")
    for bad in (
        lambda: store.create_collection("d", dim=DIM, fingerprint="\ud800"),
        lambda: store.get_collection("\ud800"),
        lambda: store.get_head("c", "\ud800"),
        lambda: store.get_head("c", "h", 2**70),
        lambda: store.head_of_request("c", "h", "\ud800"),
        lambda: store.save_head("c", "h", "\ud800", {}, b""),
        lambda: store.list_heads("c", name="\ud800"),
    ):
        with pytest.raises(InvalidArgument):
            bad()
    assert store.healthy()


def test_a_closed_store_says_so(store: Store) -> None:
    store.create_collection("c", dim=DIM, fingerprint="f")
    assert store.healthy()
    store.close()
    store.close()
    assert not store.healthy()
    for call in (store.get_collection, store.delete_collection, store.count):
        with pytest.raises(Unavailable):
            call("c")
