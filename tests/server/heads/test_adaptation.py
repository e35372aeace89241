"""Maps from source to target, on shifts whose undoing is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_server.heads import train
from likewise_server.heads.adaptation import METHODS, MIN_TARGET, adapter, paired_gain
from likewise_server.heads.base import unit_rows

Floats = NDArray[np.float64]
DIM = 12


def clusters(seed: int, n: int = 400) -> tuple[Floats, NDArray[np.intp]]:
    """Four classes in a row, so far from 0 that bringing rows to length 1 changes nothing to speak of."""
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=n)
    rows = 0.25 * rng.normal(size=(n, DIM))
    rows[:, 0] += 100
    rows[:, 1] += 2 * y - 3
    return np.asarray(rows, np.float64), y


def changed(rows: Floats, angle: float, stretch: float, shift: float = 4.0) -> Floats:
    """Turn the rows by an angle in degrees, stretch them, and move them aside."""
    turn = np.eye(DIM)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn[1:3, 1:3] = [[c, s], [-s, c]]
    turned = (rows - 100 * np.eye(DIM)[0]) @ turn * stretch
    return np.asarray(turned + 100 * np.eye(DIM)[0] + shift * np.eye(DIM)[3])


def accuracy(vectors: Floats, y: NDArray[np.intp], target: Floats, truth: NDArray[np.intp]) -> float:
    head = train(vectors, [str(label) for label in y], [f"{i:04}" for i in range(len(y))], kind="knn")
    return float((head.scores(target)[0].argmax(axis=1) == truth).mean())


@pytest.mark.parametrize(
    ("method", "angle", "stretch"), [("coral", 0, 3.0), ("coral", 10, 0.3), ("ot", 10, 3.0), ("ot", 60, 0.3)]
)
def test_a_head_carried_over_a_rotation_and_a_scale_is_right_again(method: str, angle: float, stretch: float) -> None:
    source, y = clusters(0)
    plain, truth = clusters(1)
    target = changed(plain, angle, stretch)
    assert accuracy(source, y, target, truth) < 0.7
    assert accuracy(adapter("center", source, target)(source), y, target, truth) < 0.8
    assert accuracy(adapter(method, source, target)(source), y, target, truth) > 0.95


def test_centring_undoes_a_shift() -> None:
    source, y = clusters(0)
    plain, truth = clusters(1)
    target = plain + 3 * np.eye(DIM)[1]
    assert accuracy(source, y, target, truth) < 0.6
    move = adapter("center", source, target)
    assert move.M is None
    np.testing.assert_allclose(move.b, unit_rows(target).mean(axis=0))
    assert accuracy(move(source), y, target, truth) > 0.95


@pytest.mark.parametrize("method", ["coral", "ot"])
def test_mean_and_covariance_become_those_of_the_target(method: str) -> None:
    source, target = clusters(0, 4000)[0], changed(clusters(1, 4000)[0], 40, 2)
    move = adapter(method, source, target)
    assert move.M is not None
    moved, wanted = (unit_rows(source) - move.a) @ move.M + move.b, unit_rows(target)
    np.testing.assert_allclose(moved.mean(axis=0), wanted.mean(axis=0), atol=1e-12)
    scale = np.linalg.norm(np.cov(wanted.T))
    assert np.linalg.norm(np.cov(moved.T) - np.cov(wanted.T)) < 0.02 * scale
    assert np.linalg.norm(np.cov(unit_rows(source).T) - np.cov(wanted.T)) > 0.5 * scale
    np.testing.assert_allclose(np.linalg.norm(move(source), axis=1), 1)


def test_transport_finds_a_symmetric_stretch_itself_and_coral_is_another_map() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    stretch = basis * np.array([0.5, 0.8, 1.0, 1.5, 2.0]) @ basis.T
    spread = 0.001 * rng.normal(size=(20_000, 5)) @ np.diag([1, 2, 1, 0.5, 1])
    ones = np.ones((20_000, 1))
    source, target = np.hstack([ones, spread]), np.hstack([ones, spread @ stretch])
    transport, coral = (adapter(method, source, target).M for method in ("ot", "coral"))
    assert transport is not None
    assert coral is not None
    np.testing.assert_allclose(transport[1:, 1:], stretch, atol=0.02)
    np.testing.assert_allclose(transport, transport.T, atol=1e-9)
    assert np.abs(coral[1:, 1:] - stretch).max() > 0.1


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_set_is_mapped_onto_itself(method: str) -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(100, DIM)))
    np.testing.assert_allclose(adapter(method, rows, rows)(rows), rows, atol=1e-6)


@pytest.mark.parametrize("method", list(METHODS))
def test_fewer_rows_than_dimensions_have_a_map(method: str) -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(12, 300)) + 1, rng.normal(size=(MIN_TARGET, 300)) - 1
    moved = adapter(method, source, target)(source)
    assert np.isfinite(moved).all()
    wanted = unit_rows(target).mean(axis=0)
    assert np.linalg.norm(moved.mean(axis=0) - wanted) < np.linalg.norm(unit_rows(source).mean(axis=0) - wanted)


def test_what_cannot_be_mapped_is_told_what_to_do() -> None:
    rows, few = np.eye(12), np.eye(12)[: MIN_TARGET - 1]
    with pytest.raises(InvalidArgument, match="unknown adaptation 'magic': use one of center, coral, ot"):
        adapter("magic", rows, rows)
    with pytest.raises(FailedPrecondition, match="at least 10 target items, there are 9"):
        adapter("ot", rows, few)
    with pytest.raises(FailedPrecondition, match="at least 2 source items"):
        adapter("center", rows[:1], rows)
    with pytest.raises(FailedPrecondition, match="12 dimensions, target vectors 10"):
        adapter("center", rows, np.eye(10))
    with pytest.raises(FailedPrecondition, match="all alike"):
        adapter("coral", np.ones((20, 12)), rows)
    with pytest.raises(InvalidArgument, match="vector 3 is all zeros"):
        adapter("center", rows, np.vstack([rows[:3], 0 * rows[:1], rows]))


def test_the_interval_of_a_gain_is_that_of_the_paired_difference() -> None:
    before = np.array([True] * 60 + [False] * 40)
    after = np.array([True] * 55 + [False] * 5 + [True] * 20 + [False] * 20)
    gain = paired_gain(before, after)
    assert (gain.before, gain.after) == (0.6, 0.75)
    # Agresti and Min by hand: cells 20.5 and 5.5 of 102.
    middle, spread = 15 / 102, math.sqrt((26 / 102 - (15 / 102) ** 2) / 102)
    assert (gain.low, gain.high) == pytest.approx((middle - 1.959964 * spread, middle + 1.959964 * spread), abs=1e-6)
    same = paired_gain(before, before)
    assert same.low < 0 < same.high
    tiny = paired_gain([False], [True])
    assert -1 <= tiny.low < tiny.high <= 1


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        cell = rng.choice(4, size=50, p=[0.5, 0.1, 0.2, 0.2])  # both right, lost, gained, both wrong
        gain = paired_gain(cell <= 1, (cell == 0) | (cell == 2))
        inside.append(gain.low <= 0.1 <= gain.high)
    assert 0.93 < np.mean(inside) < 0.98
