"""Rows that no segment has yet are found by the lists of one: all of them, and no others, whatever happens to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise_server.store import Metric, NewItem, SearchResult, policy
from likewise_server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DIM, ROWS, NEW, STEP, K = 32, 3000, 1500, 100, 10
METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hundreds of rows treated as thousands are."""
    monkeypatch.setattr(policy, "SEAL", 400)
    monkeypatch.setattr(policy, "SHOWN_TO_ALL", 1000)
    monkeypatch.setattr("likewise_server.store.filtering.SMALL", 1000)
    monkeypatch.setattr("likewise_server.store.finding.FEW", 50)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path) as opened:
        yield opened


def rows_of(count: int, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, DIM))).astype(np.float32)


def upsert(store: EmbeddedStore, rows: NDArray[np.float32], first: int) -> None:
    new = [NewItem(str(first + n), row, f"label {(first + n) % 3}") for n, row in enumerate(rows)]
    store.upsert("c", new, fingerprint="f")


def until(store: EmbeddedStore, queries: NDArray[np.float32], scanned: int) -> SearchResult:
    """Search until no more than so many rows are compared for a query."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        result = store.search("c", queries, K)
        if result.scanned <= scanned:
            return result
        assert time.monotonic() < ends, f"{result.scanned} rows are compared still"
        time.sleep(0.02)


def filled(store: EmbeddedStore, metric: Metric, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """Fill a collection, the last rows of which are in no segment, but in lists; return all rows."""
    rows = rows_of(ROWS + NEW, 1)
    store.create_collection("c", dim=DIM, metric=metric, fingerprint="f")
    upsert(store, rows[:ROWS], 0)
    until(store, rows[:1], ROWS // 2)  # their segment is approximate
    monkeypatch.setattr(policy, "HELD", 100)  # no segment of the others
    for start in range(ROWS, ROWS + NEW, STEP):
        upsert(store, rows[start : start + STEP], start)
        until(store, rows[:1], ROWS // 4)
    state = store.get_collection("c").state
    assert (state.rows, state.delta) == (ROWS, NEW)
    return rows


def truth(rows: NDArray[np.float32], query: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    wide, q = rows.astype(float), query.astype(float)
    if metric == "l2":
        return np.asarray(-np.linalg.norm(wide - q, axis=1))
    product = wide @ q
    return np.asarray(product / (np.linalg.norm(wide, axis=1) * np.linalg.norm(q)) if metric == "cosine" else product)


def recall(
    result: SearchResult,
    rows: NDArray[np.float32],
    kept: NDArray[np.int64],
    queries: NDArray[np.float32],
    metric: Metric,
) -> float:
    """Check that hits are rows that there are, with their scores, in order; return the share of true ones."""
    shares = []
    for hits, query in zip(result.hits, queries, strict=True):
        scores = truth(rows[kept], query, metric)
        by_id = dict(zip(kept.tolist(), scores, strict=True))
        assert len({hit.item.id for hit in hits}) == min(K, len(kept))
        np.testing.assert_allclose([h.score for h in hits], [by_id[int(h.item.id)] for h in hits], rtol=1e-3, atol=1e-3)
        best = set(kept[np.argsort(-scores)[:K]].tolist())
        shares.append(len(best & {int(hit.item.id) for hit in hits}) / K)
    return float(np.mean(shares))


@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_lists_are_found_and_few_are_compared(
    store: EmbeddedStore, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled(store, metric, monkeypatch)
    queries, everything = rows_of(100, 2), np.arange(len(rows))
    result = until(store, queries, NEW // 2)
    assert not result.exact
    assert result.measured_recall is not None
    assert result.measured_recall >= policy.TARGET
    assert recall(result, rows, everything, queries, metric) >= policy.TARGET - 0.01
    one_of_them = store.search("c", rows[ROWS + 7 : ROWS + 8], 1).hits[0][0]
    assert metric == "dot" or one_of_them.item.id == str(ROWS + 7)
    some = everything[everything % 3 == 1]
    filtered = store.search("c", queries, K, where="label = 'label 1'")
    assert recall(filtered, rows, some, queries, metric) >= policy.TARGET - 0.01


def test_what_is_deleted_or_replaced_is_gone_from_the_lists(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled(store, "cosine", monkeypatch)
    gone = np.arange(ROWS, ROWS + NEW, 2)
    store.delete("c", [str(n) for n in gone.tolist()])
    moved = ROWS + 1
    rows[moved] = rows_of(1, 5)[0]
    upsert(store, rows[moved : moved + 1], moved)
    kept, queries = np.setdiff1d(np.arange(len(rows)), gone), rows_of(100, 3)
    assert recall(store.search("c", queries, K), rows, kept, queries, "cosine") >= policy.TARGET - 0.01
    assert store.search("c", rows[moved : moved + 1], 1).hits[0][0].item.id == str(moved)


def test_a_segment_takes_the_listed_rows_over(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = filled(store, "cosine", monkeypatch)
    more = rows_of(3 * STEP, 9)
    store.checkpoint("c")
    assert store.get_collection("c").state.delta == 0
    upsert(store, more, len(rows))
    rows = np.concatenate([rows, more])
    queries = rows_of(100, 4)
    result = until(store, queries, NEW // 2)
    assert recall(result, rows, np.arange(len(rows)), queries, "cosine") >= policy.TARGET - 0.01


def test_rows_unlike_all_that_the_lists_know_are_found(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = filled(store, "cosine", monkeypatch)
    rng = np.random.default_rng(6)
    strange = (5 + 3 * rng.normal(size=(6 * STEP, DIM))).astype(np.float32)
    for start in range(0, len(strange), STEP):
        upsert(store, strange[start : start + STEP], len(rows) + start)
    rows = np.concatenate([rows, strange])
    time.sleep(0.5)  # for them to come into the lists, or to be refused; either way all are found
    queries = (5 + 3 * rng.normal(size=(100, DIM))).astype(np.float32)
    assert recall(store.search("c", queries, K), rows, np.arange(len(rows)), queries, "cosine") >= 0.9


def test_after_a_restart_they_come_into_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path / "data") as store:
        rows = filled(store, "cosine", monkeypatch)
        monkeypatch.setattr(store, "checkpoint", lambda: None)  # as if it had been killed
    with EmbeddedStore(tmp_path / "data") as store:
        assert store.get_collection("c").state.delta == NEW
        queries = rows_of(100, 8)
        result = until(store, queries, NEW // 2)
        assert recall(result, rows, np.arange(len(rows)), queries, "cosine") >= policy.TARGET - 0.01
