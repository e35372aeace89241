"""Searches that ask the same at the same time are one call of the store, and nobody notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from likewise_server.engine.merging import ALONE, MOST, Merged
from likewise_server.errors import InvalidArgument
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.types import Float32, Hit, Item, NewItem, SearchResult


class Slow:
    """Answers each query with its own first number, once it is allowed to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = asyncio.Event()

    async def __call__(self, queries: Float32) -> SearchResult:
        self.sizes.append(len(queries))
        await self.open.wait()
        if queries[0, 0] < 0:
            raise InvalidArgument("no negative numbers")
        hits = [[Hit(Item(str(int(row[0])), None, {}, "", "", 0.0), 1.0)] for row in queries]
        return SearchResult(hits, False, 0.99, 7, None)


def rows(*numbers: int) -> Float32:
    return np.array([[number] for number in numbers], np.float32)


def ids(result: SearchResult) -> list[str]:
    return [hit.item.id for hits in result.hits for hit in hits]


async def test_the_first_go_alone_and_the_rest_together() -> None:
    merged, store = Merged(at_once=2), Slow()
    calls = [asyncio.create_task(merged.search("pets", rows(n), store)) for n in range(6)]
    await asyncio.sleep(0.01)
    assert store.sizes == [1, 1]
    store.open.set()
    results = await asyncio.gather(*calls)
    assert [ids(result) for result in results] == [[str(n)] for n in range(6)]
    assert sorted(store.sizes) == [1, 1, 4]
    assert all(result.measured_recall == 0.99 and result.scanned == 7 for result in results)


async def test_each_gets_the_answers_to_its_own_queries() -> None:
    merged, store = Merged(at_once=1), Slow()
    first = asyncio.create_task(merged.search("pets", rows(0), store))
    await asyncio.sleep(0)
    calls = [asyncio.create_task(merged.search("pets", rows(*range(n, 2 * n)), store)) for n in (1, 3, 5)]
    await asyncio.sleep(0)
    store.open.set()
    assert [ids(result) for result in await asyncio.gather(*calls)] == [
        [str(m) for m in range(n, 2 * n)] for n in (1, 3, 5)
    ]
    assert ids(await first) == ["0"]
    assert store.sizes == [1, 9]


async def test_different_questions_are_never_mixed() -> None:
    merged, store, other = Merged(at_once=1), Slow(), Slow()
    calls = [
        asyncio.create_task(merged.search(asked, rows(n), call))
        for n, (asked, call) in enumerate([("pets", store), ("cars", other), ("pets", store), ("cars", other)])
    ]
    await asyncio.sleep(0)
    store.open.set()
    other.open.set()
    assert [ids(result) for result in await asyncio.gather(*calls)] == [["0"], ["1"], ["2"], ["3"]]
    assert store.sizes == other.sizes == [1, 1]


async def test_many_queries_wait_for_nobody_and_a_call_has_its_limit() -> None:
    merged, store = Merged(at_once=1), Slow()
    calls = [asyncio.create_task(merged.search("pets", rows(n), store)) for n in range(MOST + 5)]
    large = asyncio.create_task(merged.search("pets", rows(*range(ALONE + 1)), store))
    await asyncio.sleep(0.01)
    store.open.set()
    assert len(ids(await large)) == ALONE + 1
    await asyncio.gather(*calls)
    assert max(store.sizes) <= MOST
    assert ALONE + 1 in store.sizes


async def test_an_error_reaches_all_who_asked_that_and_none_who_ask_later() -> None:
    merged, store = Merged(at_once=1), Slow()
    first = asyncio.create_task(merged.search("pets", rows(1), store))
    await asyncio.sleep(0)
    failing = [asyncio.create_task(merged.search("pets", rows(-1), store)) for _ in range(2)]
    await asyncio.sleep(0)
    store.open.set()
    assert ids(await first) == ["1"]
    for call in failing:
        with pytest.raises(InvalidArgument):
            await call
    assert ids(await merged.search("pets", rows(5), store)) == ["5"]


async def test_who_leaves_takes_nobody_along() -> None:
    merged, store = Merged(at_once=1), Slow()
    calls = [asyncio.create_task(merged.search("pets", rows(n), store)) for n in range(4)]
    await asyncio.sleep(0)
    calls[0].cancel()  # its call is under way
    calls[2].cancel()  # still waiting
    await asyncio.sleep(0)
    store.open.set()
    assert ids(await calls[1]) == ["1"]
    assert ids(await calls[3]) == ["3"]
    assert store.sizes == [1, 2]


async def test_merged_answers_are_those_of_single_calls(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    queries = random.standard_normal((8, 16)).astype(np.float32)
    with EmbeddedStore(tmp_path) as store:
        store.create_collection("pets", dim=16, fingerprint="external:16")
        new = [NewItem(str(n), row) for n, row in enumerate(random.standard_normal((200, 16)).astype(np.float32))]
        store.upsert("pets", new, fingerprint="external:16")
        merged = Merged()

        async def call(asked: Float32) -> SearchResult:
            return await asyncio.to_thread(store.search, "pets", asked, 5)

        results = await asyncio.gather(*(merged.search("pets", query[np.newaxis], call) for query in queries))
        for query, result in zip(queries, results, strict=True):
            assert result.hits == store.search("pets", query[np.newaxis], 5).hits
