"""Bytes rule rows out, and never one that belongs in an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from contract.store_model import scores
from likewise_server.store import codes, exact
from likewise_server.store.codes import Codes
from likewise_server.store.index import CollectionIndex
from likewise_server.store.items import Change
from likewise_server.store.parts import Part, squares_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]
    Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

N = 3 * codes.LEAST
DIM = 160


@pytest.fixture(autouse=True)
def whatever_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "fast", lambda: True)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def near(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    middles = np.random.default_rng(5).normal(size=(40, DIM))
    return unit(middles[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, DIM)))


def copies(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(5).normal(size=(30, DIM))[rng.integers(0, 30, n)]


DRAWN: dict[str, tuple[Draw, bool]] = {  # and whether most rows are ruled out
    "in all directions": (lambda rng, n: unit(rng.normal(size=(n, DIM))), True),
    "in clusters": (near, True),
    "of a network, none under 0": (lambda rng, n: unit(np.maximum(rng.normal(size=(n, DIM)) - 0.8, 0) ** 2), True),
    "of one large number each": (lambda rng, n: np.eye(DIM)[rng.integers(0, DIM, n)] + 1e-3 * near(rng, n), False),
    "copies": (copies, False),
    "of any length": (lambda rng, n: near(rng, n) * np.exp(3 * rng.normal(size=(n, 1))), True),
    "short": (lambda rng, n: 1e-24 * near(rng, n), True),
    "too short": (lambda rng, n: 1e-33 * near(rng, n), False),
    "long": (lambda rng, n: 1e16 * near(rng, n), True),
    "so long that float32 cannot hold their squares": (lambda rng, n: 1e25 * near(rng, n), True),
    "almost the same": (lambda rng, n: unit(np.ones((n, DIM)) + 1e-6 * rng.normal(size=(n, DIM))), False),
    "zeros among them": (lambda rng, n: near(rng, n) * (rng.random((n, 1)) < 0.5), True),
}


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("kind", DRAWN)
def test_the_answer_is_that_of_brute_force(kind: str, share: float) -> None:
    draw, ruled_out = DRAWN[kind]
    rng = np.random.default_rng(len(kind))
    rows = draw(rng, N).astype(np.float32)
    at = np.flatnonzero(rows.any(axis=1))[:9]
    asked = unit(rows[at].astype(np.float64) + np.concatenate([np.zeros((3, DIM)), 0.1 * draw(rng, 9)[3:]]))
    queries: Rows = asked.astype(np.float32)
    allowed = rng.random(N) < share
    part = Part(np.arange(N), rows, np.ones(N, np.bool_), squares_of(rows), codes=Codes(DIM))
    for k in (1, 10, 40):
        found = exact.nearest([(part, allowed)], queries, k, "dot")
        for query, (vids, got) in zip(queries, found, strict=True):
            truth = np.where(allowed, scores(rows, query, "dot"), -np.inf)
            order = np.lexsort((np.arange(N), -truth))[:k]
            np.testing.assert_array_equal(vids, order)
            np.testing.assert_allclose(got, truth[order], rtol=1e-12)
    left = codes.candidates(part.codes or Codes(DIM), rows, allowed, queries, 10)
    if ruled_out:
        assert max(len(at) for at in left if at is not None) < N / 20
        assert all(at is not None for at in left)


def test_rounding_all_one_way_rules_nothing_out() -> None:
    """The worst that rounding can do: the nearest row's bytes fall behind, those of all others run ahead."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], DIM)
    steps = rng.integers(-60, 60, DIM).astype(np.float64)
    ahead, behind = steps - 0.45 * signs, steps + 0.45 * signs
    behind[1:137] -= signs[1:137]
    ahead[0] = behind[0] = 127.0
    rows = np.repeat(ahead[np.newaxis], N, axis=0)
    rows[1234] = behind
    rows32: Rows = (rows / 127).astype(np.float32)
    query = (signs / DIM**0.5).astype(np.float32)[np.newaxis]
    known = Codes(DIM)
    whole, (scales, *_) = known.of(rows32)
    assert (whole[1234] * scales[1234]) @ query[0] < (whole[0] * scales[0]) @ query[0]
    (at,) = codes.candidates(known, rows32, np.arange(N) % 50 == 1234 % 50, query, 1)
    assert at is not None
    assert 1234 in at
    part = Part(np.arange(N), rows32, np.ones(N, np.bool_), squares_of(rows32), codes=known)
    ((vids, _),) = exact.nearest([(part, part.alive)], query, 1, "dot")
    assert vids.tolist() == [1234]


def test_a_query_of_length_nought_is_answered() -> None:
    rows = near(np.random.default_rng(0), N).astype(np.float32)
    part = Part(np.arange(N), rows, np.ones(N, np.bool_), squares_of(rows), codes=Codes(DIM))
    ((vids, _),) = exact.nearest([(part, part.alive)], np.zeros((1, DIM), np.float32), 3, "dot")
    np.testing.assert_array_equal(vids, [0, 1, 2])


def test_bytes_grow_with_the_rows() -> None:
    rows = near(np.random.default_rng(0), N).astype(np.float32)
    grown = Codes(DIM)
    earlier = grown.of(rows[:5000])
    kept = [each.copy() for each in earlier]
    for end in (5001, 9000, N):
        for got, whole in zip(grown.of(rows[:end]), Codes(DIM).of(rows[:end]), strict=True):
            np.testing.assert_array_equal(got, whole)
    for got, before in zip(earlier, kept, strict=True):
        np.testing.assert_array_equal(got, before)
    at = np.arange(7, N, 3)
    taken = grown.taken(at)
    assert len(taken) == len(at)
    for got, whole in zip(taken.of(rows[at]), Codes(DIM).of(rows[at]), strict=True):
        np.testing.assert_array_equal(got, whole)


def test_rows_outside_of_segments_have_bytes_through_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = codes.candidates

    def spied(known: Codes, rows: Rows, *rest: NDArray[np.generic] | int) -> list[NDArray[np.int64] | None]:
        asked.append(len(rows))
        return real(known, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(codes, "candidates", spied)
    rng = np.random.default_rng(0)
    rows = near(rng, 3 * N).astype(np.float32)
    index = CollectionIndex(DIM, "cosine", "fp32")
    index.begin_load()
    index.finish_load(1, [], np.arange(N), np.arange(N), rows[:N])
    alive = np.ones(3 * N, np.bool_)

    def check(count: int) -> None:
        snapshot = index.snapshot
        assert snapshot is not None
        parts = [(part, part.alive) for part in snapshot.parts]
        for query, (vids, _) in zip(rows[:5], exact.nearest(parts, rows[:5], 10, "cosine"), strict=True):
            truth = np.where(alive[:count], scores(rows[:count], query, "cosine"), -np.inf)
            np.testing.assert_array_equal(vids, np.argsort(-truth, kind="stable")[:10])

    check(N)
    removed = rng.permutation(N)[:1000]
    alive[removed] = False
    index.apply(Change(1, 2, np.arange(N, 2 * N), rows[N : 2 * N], removed))
    check(2 * N)
    built = np.sort(rng.permutation(2 * N)[:N])
    index.swap(Part.of(built, unit(rows[built].astype(np.float64)).astype(np.float32), squares_of(rows[built])), [])
    check(2 * N)
    index.apply(Change(1, 3, np.arange(2 * N, 3 * N), rows[2 * N :], np.empty(0, np.int64)))
    check(3 * N)
    assert len(set(asked)) == 4


def test_a_machine_that_is_slow_at_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    codes.fast.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(codes, "_whole", _missing)
            assert codes.fast() is False
            rows = near(np.random.default_rng(0), N).astype(np.float32)
            assert codes.candidates(Codes(DIM), rows, np.ones(N, np.bool_), rows[:2], 3) == [None, None]
    finally:
        codes.fast.cache_clear()


def _missing(*_: object) -> None:
    raise AttributeError("torch has no such product")
