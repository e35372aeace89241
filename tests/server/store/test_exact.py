"""Every way of finding candidates gives the brute-force answer, in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from contract.store_model import scores
from likewise_server.store import Metric, exact
from likewise_server.store.exact import nearest
from likewise_server.store.parts import BLOCK, Part, empty_part, squares_of
from likewise_server.store.vectors import searchable

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")


def part(rows: NDArray[np.float32], metric: Metric, first_vid: int) -> Part:
    ready = searchable(rows, metric)
    return Part.of(np.arange(first_vid, first_vid + len(rows)), ready, squares_of(ready))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [1.0, 0.98, 0.6, 0.1, 0.001, 0.0])
@pytest.mark.parametrize("copies", [1, 40, 4000])
@pytest.mark.parametrize("block", [BLOCK, 500])
def test_all_paths_agree_with_brute_force(
    metric: Metric, share: float, copies: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK", block)
    rng = np.random.default_rng(7)
    n, dim = 4000, 24
    rows = np.repeat(rng.normal(size=(n // copies, dim)).astype(np.float32), copies, axis=0)
    rng.shuffle(rows)
    cut = 3000
    parts = [part(rows[:cut], metric, 1), part(rows[cut:], metric, cut + 1)]
    allowed = rng.random(n) < share
    masks = [allowed[:cut], allowed[cut:]]
    queries = np.concatenate([rows[:2], rng.normal(size=(22, dim)).astype(np.float32)])
    for asked in (queries[:1], queries):
        found = nearest(list(zip(parts, masks, strict=True)), searchable(asked, metric), 10, metric)
        for query, (vids, got) in zip(asked, found, strict=True):
            truth = np.where(allowed, scores(rows, query, metric), -np.inf)
            order = np.argsort(-truth, kind="stable")[: min(10, int(allowed.sum()))]
            np.testing.assert_array_equal(vids, order + 1)
            np.testing.assert_allclose(got, truth[order], rtol=1e-12, atol=1e-12)


def test_rows_closer_than_float32_can_tell_are_put_in_order() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=64).astype(np.float32) * 1000
    rows = np.repeat(base[np.newaxis], 500, axis=0)
    rows[np.arange(500), rng.integers(0, 64, 500)] += rng.normal(size=500).astype(np.float32) * 1e-3
    query = base + np.float32(0.5)
    for metric in METRICS:
        parts = [part(rows, metric, 1)]
        (vids, _), *_ = nearest([(parts[0], parts[0].alive)], searchable(query[np.newaxis], metric), 5, metric)
        np.testing.assert_array_equal(vids, np.argsort(-scores(rows, query, metric), kind="stable")[:5] + 1)


def test_nothing_to_search() -> None:
    none = empty_part(4)
    ((vids, found),) = nearest([(none, none.alive)], np.ones((1, 4), np.float32), 3, "dot")
    assert len(vids) == len(found) == 0
    assert nearest([(none, none.alive)], np.empty((0, 4), np.float32), 3, "dot") == []


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_half_precision_rows_are_compared_as_they_are_kept(share: float) -> None:
    rng = np.random.default_rng(4)
    rows = searchable(rng.normal(size=(900, 16)).astype(np.float32), "cosine").astype(np.float16)
    kept = rows.astype(np.float32)
    query = searchable(rng.normal(size=(1, 16)).astype(np.float32), "cosine")
    allowed = rng.random(900) < share
    ((vids, _),) = nearest([(Part.of(np.arange(900), rows, squares_of(kept)), allowed)], query, 8, "cosine")
    truth = np.where(allowed, kept.astype(float) @ query[0].astype(float), -np.inf)
    np.testing.assert_array_equal(vids, np.argsort(-truth, kind="stable")[:8])
