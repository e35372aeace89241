"""Scores that rank backbones: equal to what leaving rows out by hand and the definitions give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf

from likewise_server.errors import InvalidArgument
from likewise_server.heads import knn, ridge
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.transferability import (
    MOST_ROWS,
    log_me,
    measurable,
    regularised_h_score,
    transferability,
)
from likewise_server.heads.validate import paired_interval

Floats = NDArray[np.float64]


def clusters(n: int, d: int, classes: int, spread: float, seed: int = 0) -> tuple[Floats, NDArray[np.intp]]:
    """Rows around a mean for each class, all of them away from the origin as features are."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    means = rng.normal(size=(classes, d))
    return means[y] + spread * rng.normal(size=(n, d)) + 2.0, y


def names(y: NDArray[np.intp]) -> list[str]:
    return [f"class {value}" for value in y]


@pytest.mark.parametrize(("n", "d"), [(40, 12), (24, 60)])
def test_left_out_answers_equal_those_of_heads_trained_without_the_row(n: int, d: int) -> None:
    X, y = clusters(n, d, 4, 2.5)
    found = transferability(X, names(y))
    problem = Problem(unit_rows(X), y, 4, HeadOptions())
    lam = ridge.fit(problem).chosen["lam"]
    near, linear = [], []
    for row in range(n):
        others = np.delete(np.arange(n), row)
        part, query = problem.take(others), problem.Z[[row]]
        answer = knn.fit(part).scorer.logits(query, query @ part.Z.T).argmax()
        near.append(bool(answer == y[row]))
        # Ridge by its definition, with the λ that was chosen on all rows.
        W = np.linalg.solve(part.Z.T @ part.Z + lam * np.eye(d), part.Z.T @ part.one_hot)
        linear.append(bool((query @ W).argmax() == y[row]))
    assert found.rows.tolist() == list(range(n))
    assert found.knn_right.tolist() == near
    assert found.ridge_right.tolist() == linear
    assert 0 < np.mean(near) < 1, "the test could not tell otherwise"
    assert 0 < np.mean(linear) < 1
    assert found.right.tolist() == [(a + b) / 2 for a, b in zip(near, linear, strict=True)]


@pytest.mark.parametrize(("n", "d"), [(30, 6), (15, 40)])
def test_log_me_is_the_largest_evidence_that_a_search_over_both_variances_finds(n: int, d: int) -> None:
    X, y = clusters(n, d, 3, 1.5)

    def worst(logs: Floats, target: Floats) -> float:
        covariance = np.exp(logs[0]) * X @ X.T + np.exp(logs[1]) * np.eye(n)
        return -float(multivariate_normal(np.zeros(n), covariance, allow_singular=True).logpdf(target))

    best = []
    for label in range(3):
        target = (y == label).astype(float)
        starts = [(a, b) for a in (-8.0, -4.0, 0.0) for b in (-6.0, -2.0)]
        runs = [minimize(worst, start, (target,), method="Nelder-Mead") for start in starts]
        best.append(-min(run.fun for run in runs) / n)
    assert log_me(X, y) == pytest.approx(np.mean(best), abs=1e-4)


def test_log_me_does_not_depend_on_the_size_of_the_numbers_and_rises_with_order() -> None:
    (close, y), (far, _) = clusters(60, 20, 3, 0.3), clusters(60, 20, 3, 6.0)
    assert log_me(1000 * close, y) == pytest.approx(log_me(close, y), abs=1e-6)
    assert log_me(close, y) > log_me(far, y) + 0.5


def test_log_me_is_finite_where_features_explain_the_labels_without_a_rest() -> None:
    y = np.arange(30) % 3
    value = log_me(np.eye(3)[y], y)
    assert np.isfinite(value)
    assert value > log_me(clusters(30, 3, 3, 1.0)[0], y)


@pytest.mark.parametrize(("n", "d"), [(80, 10), (20, 50)])
def test_the_h_score_equals_its_definition_in_full_matrices(n: int, d: int) -> None:
    X, y = clusters(n, d, 4, 1.0)
    shrunk = LedoitWolf().fit(X)
    means = np.stack([X[y == label].mean(axis=0) for label in y])
    between = (1 - shrunk.shrinkage_) * np.cov(means, rowvar=False, bias=True)
    expected = np.trace(np.linalg.solve(shrunk.covariance_, between))
    assert regularised_h_score(X, y) == pytest.approx(expected, rel=1e-8)


def test_noise_of_more_dimensions_than_rows_has_no_full_h_score() -> None:
    y = np.arange(40) % 5
    noise = np.random.default_rng(0).normal(size=(40, 200))
    centred = noise - noise.mean(axis=0)
    means = np.stack([centred[y == label].mean(axis=0) for label in y])
    plain = np.trace(np.linalg.pinv(centred.T @ centred / 40) @ (means.T @ means / 40))
    assert plain == pytest.approx(4), "this is the trap: C - 1 for anything"
    told = regularised_h_score(noise, y)
    assert told < 1
    assert regularised_h_score(clusters(40, 200, 5, 0.5)[0], y) > 3 > told


def test_rows_that_are_all_the_same_score_nothing() -> None:
    assert regularised_h_score(np.ones((6, 4)), np.array([0, 1, 0, 1, 0, 1])) == 0


def test_a_class_with_one_row_is_there_and_is_not_measured() -> None:
    X, y = clusters(21, 8, 3, 0.2)
    labels = [*names(y[:20]), "once"]
    found = transferability(X, labels)
    assert found.rows.tolist() == list(range(20))
    assert len(found.right) == 20
    assert measurable(labels).tolist() == list(range(20))


@pytest.mark.parametrize("labels", [["a"] * 6, ["a", "a", "a", "b", "c", "d"], list("abcdef")])
def test_too_few_classes_are_told(labels: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="two classes or more with two items each"):
        transferability(np.random.default_rng(0).normal(size=(6, 3)), labels)


def test_what_no_head_could_be_trained_on_is_refused() -> None:
    X = np.ones((4, 3))
    X[2] = 0
    with pytest.raises(InvalidArgument, match="vector 2 is all zeros"):
        transferability(X, ["a", "a", "b", "b"])


def test_of_many_rows_a_part_is_measured_the_same_for_every_backbone() -> None:
    labels = [f"class {i % 3}" for i in range(MOST_ROWS + 500)]
    rows = measurable(labels)
    assert MOST_ROWS - 10 < len(rows) <= MOST_ROWS
    assert rows.tolist() == measurable(labels).tolist()


def test_better_features_of_photographs_rank_higher(
    photos: tuple[NDArray[np.float32], list[str], list[str]],
) -> None:
    X, labels, _ = photos
    rng = np.random.default_rng(0)
    good = transferability(X, labels)
    # The same features behind noise of their own size.
    worse = transferability(X + 2 * X.std() * rng.normal(size=X.shape), labels)
    assert good.right.mean() > worse.right.mean()
    assert good.log_me > worse.log_me
    assert good.h_score > worse.h_score
    assert paired_interval(good.right - worse.right)[0] > 0


def test_the_paired_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        first, second = rng.random(40) < 0.8, rng.random(40) < 0.7
        low, high = paired_interval(first.astype(float) - second)
        hits += low <= 0.1 <= high
    assert 0.93 < hits / 2000 < 0.98


def test_equal_answers_leave_room_for_a_difference() -> None:
    low, high = paired_interval(np.zeros(20))
    assert -0.2 < low < 0 < high < 0.2
    assert paired_interval(np.ones(3))[1] == 1.0
