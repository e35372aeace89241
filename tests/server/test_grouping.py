"""Groups of hits and the filters behind them, on a real store: complete however lopsided, and safe to quote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise_server.engine.grouping import LARGEST_K
from likewise_server.engine.precedence import Precedence
from likewise_server.engine.queries import ByIds, ByVectors
from likewise_server.engine.searching import Found, Groups, Searches, Wanted
from likewise_server.engine.wheres import both, group_field
from likewise_server.engine.workers import Workers
from likewise_server.errors import DeadlineExceeded, InvalidArgument
from likewise_server.store import NewItem, Store, open_store

HOSTILE = [
    "it's",
    "''",
    "'",
    "') or ('1' = '1",
    'say "hi"',
    "`tick`",
    "back\\slash",
    "100%",
    "under_score",
    "two\nlines",
    "-- comment",
    "",
    " ",
    "Ünïcödé 🐈",
    "null",
    "x" * 900,
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data")
    opened.create_collection("c", dim=2, metric="l2", fingerprint="f")
    yield opened
    opened.close()


@pytest.fixture
def searches(store: Store) -> Iterator[Searches]:
    workers = Workers(2)
    embedder: Any = None  # nothing here asks with images
    yield Searches(store, embedder, workers, Precedence())
    workers.close()


def put(store: Store, rows: Sequence[tuple[float, str | None, dict[str, Any]]], start: int = 0) -> None:
    items = [
        NewItem(f"i{start + i:06}", np.array([at, 0], np.float32), label, attributes)
        for i, (at, label, attributes) in enumerate(rows)
    ]
    for first in range(0, len(items), 5000):
        assert all(outcome == "created" for outcome in store.upsert("c", items[first : first + 5000], fingerprint="f"))


def origin(queries: int = 1) -> ByVectors:
    return ByVectors(np.zeros((queries, 2), np.float32), "f")


def values(found: Found) -> list[list[Any]]:
    return [[group.value for group in result.groups] for result in found.results if isinstance(result, Groups)]


def sizes(found: Found) -> list[list[int]]:
    return [[len(group.hits) for group in result.groups] for result in found.results if isinstance(result, Groups)]


async def test_groups_come_in_order_of_their_best_hits_with_their_best_hits(store: Store, searches: Searches) -> None:
    put(store, [(1, "a", {}), (2, "b", {}), (3, "a", {}), (4, None, {}), (5, "c", {}), (6, "b", {}), (7, "a", {})])
    found = await searches.search("c", origin(2), Wanted(2, group_by="label", group_size=2))
    for result in found.results:
        assert isinstance(result, Groups)
        assert [(g.value, [h.item.id for h in g.hits]) for g in result.groups] == [
            ("a", ["i000000", "i000002"]),
            ("b", ["i000001", "i000005"]),
        ]
        assert [h.score for h in result.groups[0].hits] == [-1, -3]
    assert values(await searches.search("c", origin(), Wanted(9, group_by="label"))) == [["a", "b", "c"]]
    near = await searches.search("c", origin(), Wanted(9, group_by="label", min_score=-2.5))
    assert values(near) == [["a", "b"]]
    mine = await searches.search("c", ByIds(["i000000"]), Wanted(1, group_by="label", group_size=9))
    assert (values(mine), sizes(mine)) == ([["b"]], [[2]])  # nearest when the item itself is left out
    mine = await searches.search("c", ByIds(["i000000"]), Wanted(3, group_by="label", group_size=9))
    assert sorted(zip(values(mine)[0], sizes(mine)[0], strict=True)) == [("a", 2), ("b", 2), ("c", 1)]


async def test_all_groups_come_though_one_fills_every_search(store: Store, searches: Searches) -> None:
    put(store, [(i / 1e6, "crowd", {"n": i}) for i in range(LARGEST_K + 500)])
    put(store, [(5 + i, f"far {i % 40}", {"n": -i}) for i in range(120)], start=20_000)
    found = await searches.search("c", origin(), Wanted(30, group_by="label", group_size=2))
    assert values(found) == [["crowd", *(f"far {i}" for i in range(29))]]
    assert sizes(found) == [[2] * 30]
    everything = await searches.search("c", origin(), Wanted(100, group_by="label", group_size=4, where="n < 1"))
    assert len(values(everything)[0]) == 41
    assert sizes(everything)[0][1:] == [3] * 40
    assert everything.filtered_count == 121
    with pytest.raises(DeadlineExceeded, match="allow more"):
        await searches.search("c", origin(), Wanted(30, group_by="label"), deadline=0.0)


async def test_more_groups_than_a_filter_has_room_for(store: Store, searches: Searches) -> None:
    # Two hits of each group fill the largest search with 5000 long names; the next ones must still be found.
    put(store, [(i / 1e6, f"{i % 5000:05}" + "n" * 60, {}) for i in range(LARGEST_K)])
    put(store, [(9, "last", {})], start=20_000)
    found = await searches.search("c", origin(), Wanted(5001, group_by="label"))
    assert len(values(found)[0]) == 5001
    assert values(found)[0][-1] == "last"


async def test_an_index_that_finds_too_few_hides_no_group(store: Store, searches: Searches) -> None:
    put(store, [(i, "abc"[i % 3], {}) for i in range(30)])
    search = store.search

    def hasty(*arguments: Any, where: str = "", **options: Any) -> Any:
        found = search(*arguments, where=where, **options)
        if where:  # filtered searches are complete, by contract
            return found
        return dataclasses.replace(found, hits=[hits[:1] for hits in found.hits], exact=False, measured_recall=0.9)

    store.search = hasty  # type: ignore[method-assign]
    found = await searches.search("c", origin(), Wanted(3, group_by="label", group_size=4))
    assert (values(found), sizes(found)) == ([["a", "b", "c"]], [[4, 4, 4]])
    assert (found.exact, found.measured_recall) == (False, 0.9)


async def test_values_of_every_kind_are_groups_and_the_rest_is_left_out(store: Store, searches: Searches) -> None:
    kinds: list[Any] = [1, True, "1", 1.5, False, 0, "true", 0.1 + 0.2, 1e-7, 2**53, -4, 1e300]
    odd: list[Any] = [None, [1], {"a": 1}]
    put(store, [(i, None, {"v": {"w": value}}) for i, value in enumerate(kinds + odd)] + [(99, None, {})])
    found = await searches.search("c", origin(), Wanted(50, group_by="v.w"))
    assert [(type(v), v) for v in values(found)[0]] == [(type(v), v) for v in kinds]
    by = group_field("v.w")
    assert store.count("c", by.present()) == len(kinds)
    for value in kinds:
        assert store.count("c", by.is_value(value)) == 1, value
    assert store.count("c", both(by.present(), by.is_none_of(kinds[:4], 1000))) == len(kinds) - 4


def test_hostile_labels_are_quoted(store: Store) -> None:
    put(store, [(i, label, {"v": label}) for i, label in enumerate(HOSTILE)])
    for name in ("label", "v"):
        by = group_field(name)
        for label in HOSTILE:
            [[item], _] = store.list_items("c", where=by.is_value(label))
            assert item.label == label
            rest = store.count("c", both("label is not null", by.is_none_of([label], 2000)))
            assert rest == len(HOSTILE) - 1
        assert store.count("c", by.is_none_of(HOSTILE, 5000)) == 0


@pytest.mark.parametrize(
    ("written", "attributes"),
    [
        ("`my field`", {"my field": 7}),
        ("`a.b`", {"a.b": 7}),
        ("a.`b c`", {"a": {"b c": 7}}),
        ("`tick``s`", {"tick`s": 7}),
        ("`select`", {"select": 7}),
        ("`is`.`null`", {"is": {"null": 7}}),
        ("`label`", {"label": 7}),
        ("größe", {"größe": 7}),
        ("`it's`", {"it's": 7}),
    ],
)
async def test_hostile_names_are_quoted(
    store: Store, searches: Searches, written: str, attributes: dict[str, Any]
) -> None:
    put(store, [(1, "x", attributes), (2, "y", {})])
    assert values(await searches.search("c", origin(), Wanted(5, group_by=written))) == [[7]]
    by = group_field(written)
    assert store.count("c", both(by.present(), by.is_value(7))) == 1, json.dumps(attributes)


@pytest.mark.parametrize(
    "name", ["id", "uri", "a = 1 or b", "not a", "(a", "a)", "exists(a) and b", "", " ", "1", "'a'", "a..b", "`a", "is"]
)
def test_what_is_no_field_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot group by"):
        group_field(name)


async def test_a_filter_that_closes_parentheses_it_did_not_open_is_refused(searches: Searches) -> None:
    with pytest.raises(InvalidArgument, match="where"):
        await searches.search("c", origin(), Wanted(5, where="label = 'a') or (label = 'b'", group_by="label"))
