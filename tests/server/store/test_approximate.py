"""Approximate segments: built behind, tuned, filtered, merged, damaged, killed; held against brute force."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise_server.errors import InvalidArgument
from likewise_server.store import Metric, NewItem, SearchResult, policy, shadow
from likewise_server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DIM, ROWS, K = 32, 3000, 10
PATIENCE_S = 60.0
METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Return clustered rows, as embeddings are."""
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, DIM))).astype(np.float32)


def items(rows: NDArray[np.float32], first: int = 0) -> list[NewItem]:
    return [
        NewItem(str(first + n), row, f"label {(first + n) % 3}", {"n": first + n, "tenth": (first + n) % 10 == 0})
        for n, row in enumerate(rows)
    ]


def scores(rows: NDArray[np.float32], query: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    wide, q = rows.astype(float), query.astype(float)
    if metric == "l2":
        return np.asarray(-np.linalg.norm(wide - q, axis=1))
    product: NDArray[np.float64] = wide @ q
    if metric == "cosine":
        product /= np.linalg.norm(wide, axis=1) * np.linalg.norm(q)
    return product


def recall(
    result: SearchResult,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    metric: Metric,
    matches: Callable[[int], bool] = lambda _: True,
    k: int = K,
) -> float:
    """Check that every hit is a row that matches, with its score, in order; return the share of true ones."""
    ids = np.array([n for n in range(len(rows)) if matches(n)], np.int64)
    found = 0.0
    if not len(ids):
        assert not any(result.hits)
        return 1.0
    for hits, query in zip(result.hits, queries, strict=True):
        assert len(hits) == min(k, len(ids))
        assert len({hit.item.id for hit in hits}) == len(hits)
        true = scores(rows[ids], query, metric)
        by_id = dict(zip(ids.tolist(), true, strict=True))
        got = [hit.score for hit in hits]
        np.testing.assert_allclose(got, [by_id[int(hit.item.id)] for hit in hits], rtol=1e-3, atol=1e-3)
        assert got == sorted(got, reverse=True)
        best = set(ids[np.argsort(-true)[: len(hits)]].tolist())
        found += len(best & {int(hit.item.id) for hit in hits}) / max(1, len(hits))
    return found / len(queries)


def built(store: EmbeddedStore, name: str = "c") -> str:
    """Wait until nothing is being built; return what the collection is searched with."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        state = store.get_collection(name).state
        if state.kind != "exact" and not state.building:
            return state.kind
        time.sleep(0.05)
    raise AssertionError(f"still {state}")


@pytest.fixture(scope="module", autouse=True)
def early() -> Iterator[None]:
    """Have thousands of rows treated as hundreds of thousands are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "SEAL", 400)
        patch.setattr(policy, "SHOWN_TO_ALL", 1000)
        patch.setattr("likewise_server.store.filtering.SMALL", 1000)
        patch.setattr("likewise_server.store.finding.FEW", 50)
        yield


@pytest.fixture(scope="module", params=METRICS)
def ready(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedStore, NDArray[np.float32], Metric]]:
    """A store with an approximate segment, for tests that only ask; its rows; its metric."""
    with EmbeddedStore(tmp_path_factory.mktemp("ready")) as opened:
        rows = filled(opened, request.param)
        assert built(opened).startswith("IVF")
        yield opened, rows, request.param


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path) as opened:
        yield opened


def filled(store: EmbeddedStore, metric: Metric = "cosine", **options: object) -> NDArray[np.float32]:
    rows = vectors(ROWS, 1)
    store.create_collection("c", dim=DIM, metric=metric, fingerprint="f", **options)  # type: ignore[arg-type]
    store.upsert("c", items(rows), fingerprint="f")
    store.search("c", rows[:1], 1)
    return rows


def test_many_queries_at_once_get_what_each_gets_alone(
    ready: tuple[EmbeddedStore, NDArray[np.float32], Metric],
) -> None:
    store, *_ = ready
    queries = vectors(40, 77)
    for where in ("", "tenth = true"):
        together = store.search("c", queries, K, where=where).hits
        for query, hits in zip(queries, together, strict=True):
            (alone,) = store.search("c", query[np.newaxis], K, where=where).hits
            assert [hit.item.id for hit in hits] == [hit.item.id for hit in alone]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_filter_that_matches_only_far_away_finds_the_nearest_that_match(store: EmbeddedStore, metric: Metric) -> None:
    """Labels lie together: of the lists that are near a query, none may hold a row that matches."""
    centres = 3 * np.random.default_rng(0).normal(size=(40, DIM))
    rng = np.random.default_rng(1)
    cluster = rng.integers(0, 40, ROWS)
    rows = (centres[cluster] + rng.normal(size=(ROWS, DIM))).astype(np.float32)
    store.create_collection("c", dim=DIM, metric=metric, fingerprint="f")
    store.upsert("c", [NewItem(str(n), row, f"class {cluster[n] % 4}") for n, row in enumerate(rows)], fingerprint="f")
    store.search("c", rows[:1], 1)
    assert built(store).startswith("IVF")
    found = []
    # One by one: where one query of several gets too few hits, all rows are compared for all of them.
    for query in rows[np.flatnonzero(cluster % 4)[:40], np.newaxis]:
        result = store.search("c", query, K, where="label = 'class 0'")
        found.append(recall(result, rows, query, metric, lambda n: cluster[n] % 4 == 0))
    assert np.mean(found) >= 0.99


def test_a_large_collection_gets_an_approximate_segment_by_itself(
    ready: tuple[EmbeddedStore, NDArray[np.float32], Metric],
) -> None:
    store, rows, metric = ready
    queries = vectors(50, 2)
    result = store.search("c", queries, K)
    assert not result.exact
    assert result.measured_recall is not None
    assert result.measured_recall >= policy.TARGET
    assert result.scanned < ROWS
    assert recall(result, rows, queries, metric) >= 0.97
    state = store.get_collection("c").state
    assert (state.rows, state.delta, state.measured_recall) == (ROWS, 0, result.measured_recall)
    assert "effort=" in state.operating_point
    assert store.fsck().problems == []


@pytest.mark.parametrize("factory", ["IVF32,Flat", "HNSW16", "IVF32,PQ16x4fs", "SQ8", "PCA16,IVF16,SQ8"])
def test_any_factory_that_reaches_the_target_is_used(store: EmbeddedStore, factory: str) -> None:
    rows = filled(store, index=factory)
    assert built(store) == factory
    queries = vectors(30, 2)
    assert recall(store.search("c", queries, K), rows, queries, "cosine") >= 0.97
    where = "tenth = true"
    assert recall(store.search("c", queries, K, where=where), rows, queries, "cosine", lambda n: n % 10 == 0) >= 0.97


@pytest.mark.parametrize("factory", ["IVF", "Nonsense", "IVF16,Flat,RFlat", "IDMap,Flat", "IVF16,PQ5000"])
def test_a_factory_that_cannot_be_is_refused(store: EmbeddedStore, factory: str) -> None:
    with pytest.raises(InvalidArgument, match=factory[:8]):
        store.create_collection("c", dim=DIM, fingerprint="f", index=factory)
    assert store.list_collections(10)[0] == []


def test_an_index_that_cannot_reach_the_target_is_not_used(store: EmbeddedStore) -> None:
    rows = filled(store, index="PQ1x1")
    ends = time.monotonic() + PATIENCE_S
    while store.get_collection("c").bytes_by_part["segments"] == 0 and time.monotonic() < ends:
        time.sleep(0.05)
    result = store.search("c", rows[:5], K)
    assert result.exact
    assert store.get_collection("c").state.kind == "exact"


@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ("n >= 1500", lambda n: n >= 1500),
        ("tenth = true", lambda n: n % 10 == 0),
        ("n < 90", lambda n: n < 90),
        ("n < 7", lambda n: n < 7),
        ("n < 0", lambda _: False),
        ("label = 'label 1' and n < 300", lambda n: n % 3 == 1 and n < 300),
    ],
)
def test_a_filter_never_costs_hits(
    ready: tuple[EmbeddedStore, NDArray[np.float32], Metric], where: str, matches: Callable[[int], bool]
) -> None:
    store, rows, metric = ready
    queries = vectors(20, 3)
    for _ in range(2):  # the second time from what the first found out
        result = store.search("c", queries, K, where=where)
        assert recall(result, rows, queries, metric, matches) >= 0.97
        if result.filtered_count is not None:
            assert result.filtered_count == sum(map(matches, range(ROWS)))
    excluded = [hit.item.id for hit in result.hits[0]]
    again = store.search("c", queries[:1], K, where=where, exclude_ids=excluded)
    assert recall(again, rows, queries[:1], metric, lambda n: matches(n) and str(n) not in excluded) >= 0.9


@pytest.mark.parametrize(("seconds", "compared"), [(1.0, False), (0.0, True)])
def test_rows_that_match_are_compared_one_by_one_where_that_is_cheaper(
    ready: tuple[EmbeddedStore, NDArray[np.float32], Metric],
    seconds: float,
    compared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, rows, metric = ready
    monkeypatch.setattr("likewise_server.store.finding.FEW", ROWS // 2)
    monkeypatch.setattr("likewise_server.store.filtering.COPIED_S", seconds)
    monkeypatch.setattr("likewise_server.store.filtering.COMPARED_S", seconds)
    queries = vectors(20, 3)
    result = store.search("c", queries, K, where="tenth = true")
    assert recall(result, rows, queries, metric, lambda n: n % 10 == 0) >= 0.97
    assert result.exact is compared
    assert result.filtered_count == ROWS / 10


@pytest.mark.parametrize("k", [1, 100, 300, 301, 3000, 10_000])
def test_any_k_gets_its_hits(ready: tuple[EmbeddedStore, NDArray[np.float32], Metric], k: int) -> None:
    store, rows, metric = ready
    queries = vectors(3, 4)
    result = store.search("c", queries, k)
    assert recall(result, rows, queries, metric, k=k) >= 0.97
    assert result.exact is (k > 300), "what was never measured is not guessed at"


def test_later_writes_and_deletes_are_seen_at_once_and_merged_behind(store: EmbeddedStore) -> None:
    rows = filled(store)
    built(store)
    more = vectors(700, 5)
    store.delete("c", where="n < 100")
    queries = np.concatenate([more[:5], rows[:5]])
    for start in range(0, 700, 100):
        store.upsert("c", items(more[start : start + 100], ROWS + start), fingerprint="f")
    everything = np.concatenate([rows, more])
    for _ in range(2):
        result = store.search("c", queries, K)
        assert recall(result, everything, queries, "cosine", lambda n: n >= 100) >= 0.97
        assert result.hits[0][0].item.id == str(ROWS)
        store.checkpoint("c")
    assert store.get_collection("c").state.rows <= 3700
    assert store.fsck().problems == []


def test_many_deletes_lead_to_a_new_segment(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MIN_DEAD", 100)
    filled(store)
    built(store)
    store.delete("c", where="n < 1200")
    ends = time.monotonic() + PATIENCE_S
    while store.get_collection("c").state.rows > 1800 and time.monotonic() < ends:
        time.sleep(0.05)
    assert store.get_collection("c").state.rows == 1800


def test_changing_the_index_rebuilds_it(store: EmbeddedStore) -> None:
    rows = filled(store, index="exact")
    store.checkpoint("c")
    assert store.search("c", rows[:1], K).exact
    store.alter_collection("c", index="IVF16,Flat")
    assert built(store) == "IVF16,Flat"
    store.alter_collection("c", index="exact")
    ends = time.monotonic() + PATIENCE_S
    while not store.search("c", rows[:1], K).exact and time.monotonic() < ends:
        time.sleep(0.05)
    assert store.search("c", rows[:1], K).exact


def test_half_precision_takes_half_the_bytes(tmp_path: Path) -> None:
    size = {}
    for storage in ("fp32", "fp16"):
        with EmbeddedStore(tmp_path / storage) as store:
            rows = filled(store, storage=storage)
            built(store)
            queries = vectors(30, 2)
            assert recall(store.search("c", queries, K), rows, queries, "cosine") >= 0.96
            size[storage] = store.get_collection("c").bytes_by_part["segment_rows"]
            assert store.fsck().problems == []
            np.testing.assert_array_equal(store.get("c", ["7"], vectors=True)[0].vector, rows[7])  # type: ignore[union-attr]
    assert size["fp32"] == 2 * size["fp16"] == ROWS * DIM * 4
    with EmbeddedStore(tmp_path / "other") as store, pytest.raises(InvalidArgument, match="fp16 needs metric cosine"):
        store.create_collection("c", dim=2, metric="dot", fingerprint="f", storage="fp16")


@pytest.mark.parametrize("section", ["rows", "codes"])
def test_a_damaged_segment_is_found_and_built_anew(tmp_path: Path, section: str) -> None:
    with EmbeddedStore(tmp_path) as store:
        rows = filled(store)
        built(store)
        at = store._maintenance._usable(1)[0][0].segment.row.meta.sections[section].start  # type: ignore[union-attr]
    (file,) = (tmp_path / "segments").iterdir()
    data = bytearray(file.read_bytes())
    data[at + 100] ^= 4
    file.write_bytes(data)
    with EmbeddedStore(tmp_path) as store:
        queries = vectors(20, 2)
        assert recall(store.search("c", queries, K), rows, queries, "cosine") == 1.0, "exact meanwhile"
        assert built(store).startswith("IVF")
        assert recall(store.search("c", queries, K), rows, queries, "cosine") >= 0.97
        assert store.fsck().problems == []
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


VICTIM = """
import sys
import numpy as np
from likewise_server.store import NewItem, open_store, policy

policy.SHOWN_TO_ALL = 100
store = open_store(sys.argv[1])
rows = np.random.default_rng(1).normal(size=(600, 8)).astype("f4")
store.create_collection("c", dim=8, fingerprint="f")
store.upsert("c", [NewItem(str(n), row) for n, row in enumerate(rows)], fingerprint="f")
store.search("c", rows[:1], 1)
try:
    store.checkpoint("c")
except Exception as error:
    print("failed:", error)
print("found", len(store.search("c", rows[:1], 50).hits[0]), store.get_collection("c").state.kind)
store.delete("c", ["0"])
store._closed = True
"""


@pytest.mark.parametrize("step", ["after_build", "after_write", "after_fsync", "after_rename", "after_folder_fsync"])
def test_a_builder_that_is_killed_costs_nothing_but_time(tmp_path: Path, step: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(tmp_path)],
        env={**os.environ, "LIKEWISE_FAILPOINTS": f"segment.{step}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"the builder ended with {-signal.SIGKILL}" in done.stdout
    assert "found 50 exact" in done.stdout
    with EmbeddedStore(tmp_path) as store:
        assert store.count("c") == 599
        assert len(store.search("c", np.ones((1, 8), np.float32), 1000).hits[0]) == 599
        assert store.fsck().problems == []


@pytest.mark.parametrize("step", ["after_row", "after_collect"])
def test_a_server_that_is_killed_after_a_build_has_it_or_has_not(tmp_path: Path, step: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(tmp_path)],
        env={**os.environ, "LIKEWISE_FAILPOINTS": f"segment.{step}"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    with EmbeddedStore(tmp_path) as store:
        assert store.get_collection("c").state.kind.startswith("IVF")
        assert len(store.search("c", np.ones((1, 8), np.float32), 1000).hits[0]) == 600
        assert store.fsck().problems == []


def asked_often(store: EmbeddedStore, seen: Callable[[], bool]) -> None:
    """Search until the answers that were looked at again have had their effect."""
    queries = vectors(400, 6)
    ends = time.monotonic() + PATIENCE_S
    at = 0
    while not seen() and time.monotonic() < ends:
        store.search("c", queries[at % 400 : at % 400 + 1], K)
        at += 1
        time.sleep(0.01)
    assert seen()


def test_real_queries_are_looked_at_again(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store._shadow, "_every_s", 0.0)
    rows = filled(store)
    built(store)
    asked_often(store, lambda: store._shadow.recall(1) is not None)
    mean = store._shadow.recall(1)
    assert mean is not None
    assert 0.9 < mean <= 1
    result = store.search("c", rows[:1], K)
    assert result.measured_recall is not None
    assert result.measured_recall <= (store.get_collection("c").state.measured_recall or 0)


def test_recall_that_falls_on_real_queries_has_the_index_tuned_to_them(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store._shadow, "_every_s", 0.0)
    rows = filled(store)
    built(store)
    (before,) = files(store)
    monkeypatch.setattr(shadow, "recall_of", lambda _: 0.5)
    asked_often(store, lambda: "tuned anew" in caplog.text)
    ends = time.monotonic() + PATIENCE_S
    while files(store) == [before] and time.monotonic() < ends:
        time.sleep(0.1)
    assert files(store) != [before]
    assert store.get_collection("c").state.rows == len(rows)


def files(store: EmbeddedStore) -> list[str]:
    return sorted(path.name for path in store._files.folder.glob("*.segment"))


def test_no_queries_get_no_answers(ready: tuple[EmbeddedStore, NDArray[np.float32], Metric]) -> None:
    store, _, _ = ready
    for where in ("", "n >= 1500", "n < 7"):
        assert store.search("c", np.empty((0, DIM), np.float32), K, where=where).hits == []


def test_hits_in_full_and_bare_are_the_same(ready: tuple[EmbeddedStore, NDArray[np.float32], Metric]) -> None:
    store, _, _ = ready
    queries = vectors(20, 8)
    full, bare = (store.search("c", queries, K, bare=bare) for bare in (False, True))
    assert [[(h.item.id, h.score) for h in hits] for hits in full.hits] == [
        [(h.item.id, h.score) for h in hits] for hits in bare.hits
    ]
    assert full.hits[0][0].item.attributes
    assert not bare.hits[0][0].item.attributes
