from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.errors import InvalidArgument
from likewise_server.heads import train
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.lda import KIND as LDA
from likewise_server.heads.lda import fit_moments, leave_one_out
from likewise_server.heads.moments import Moments
from likewise_server.heads.options import HeadOptions

Data = tuple[NDArray[np.float32], list[str], list[str]]


def problem(sizes: list[int], d: int, *, shrinkage: float | None = 1.0, **options: Any) -> Problem:
    rng = np.random.default_rng(d)
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = rng.normal(size=(len(sizes), d))[y] + 1.5 * rng.normal(size=(len(y), d))
    return Problem(unit_rows(X), y, len(sizes), HeadOptions(shrinkage=shrinkage, **options))


def left_out(whole: Problem, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    logits = []
    for i in rows:
        scorer = LDA.fit(whole.take(np.delete(np.arange(len(whole.y)), i))).scorer
        logits.append(scorer.logits(whole.Z[i : i + 1], whole.Z[i : i + 1])[0])
    return np.array(logits)


@pytest.mark.parametrize("sizes", [[12, 10, 8], [2, 3, 9], [1, 5, 4], [2, 2], [2, 1, 1], [7]])
@pytest.mark.parametrize(("d", "shrinkage"), [(8, 1.0), (60, 1.0), (8, 1 / 16), (60, 4.0)])
def test_the_closed_form_is_leaving_each_row_out(sizes: list[int], d: int, shrinkage: float) -> None:
    whole = problem(sizes, d, shrinkage=shrinkage)
    held = leave_one_out(whole)
    assert len(held.rows) == sum(size for size in sizes if size > 1)
    np.testing.assert_allclose(held.logits, left_out(whole, held.rows), atol=1e-9)


def test_leaving_out_the_only_scatter_there_is() -> None:
    whole = problem([2, 2], 12)
    whole = replace(whole, Z=whole.Z[[0, 1, 2, 2]])
    held = leave_one_out(whole)
    np.testing.assert_allclose(held.logits, left_out(whole, held.rows), atol=1e-9)


@pytest.mark.parametrize(("sizes", "d"), [([40, 30, 30], 20), ([4, 3, 3], 20)])
def test_the_covariance_is_shrunk_as_in_gda(sizes: list[int], d: int) -> None:
    whole = problem(sizes, d)
    n = len(whole.y)
    means = np.stack([whole.Z[whole.y == c].mean(axis=0) for c in range(3)])
    S = np.cov((whole.Z - means[whole.y]).T)
    inverse = d * np.linalg.inv((n - 1) * S + np.trace(S) * np.eye(d))
    expected = whole.Z @ inverse @ means.T - np.einsum("cd,de,ce->c", means, inverse, means) / 2
    got = LDA.fit(whole).scorer.logits(whole.Z, whole.Z)
    # The factor is the temperature's to find.
    scale = np.trace(S) / d
    np.testing.assert_allclose(got, expected * scale, atol=1e-10)


@pytest.mark.parametrize("copies", [1, 3])
def test_without_any_spread_within_classes_it_answers_as_ncm(digits: Data, copies: int) -> None:
    X, y = digits[0], np.array(digits[1])
    rows = np.repeat([np.flatnonzero(y == c)[0] for c in np.unique(y)], copies)
    ids = [str(i) for i in range(len(rows))]
    heads = [
        train(X[rows], list(y[rows]), ids, kind=kind, options={"temperature": 0.04}).scores(X[:500])[0]
        for kind in ("lda", "ncm")
    ]
    np.testing.assert_allclose(heads[0], heads[1], atol=1e-9)


def test_it_beats_the_class_means_where_features_are_correlated(digits: Data) -> None:
    X, labels, ids = digits
    right = {}
    for kind in ("ncm", "lda"):
        head = train(X[:300], labels[:300], ids[:300], kind=kind)
        right[kind] = np.mean([p.best == t for p, t in zip(head.predict(X[300:]), labels[300:], strict=True)])
    assert right["lda"] > right["ncm"] + 0.03


@pytest.mark.parametrize("sizes", [[20, 15, 9], [9, 1, 6]])
def test_sums_give_what_the_rows_give(sizes: list[int]) -> None:
    whole = problem(sizes, 30)
    fit = fit_moments(Moments.of(whole, gram=True), whole)
    for name, array in LDA.fit(whole).scorer.arrays().items():
        np.testing.assert_allclose(fit.scorer.arrays()[name], array, atol=1e-9)
    assert fit.held_out is not None
    np.testing.assert_allclose(fit.held_out.logits, leave_one_out(whole).logits, atol=1e-9)


@pytest.mark.parametrize("spread", [1.5, 0.01])
def test_many_rows_left_out_in_single_precision_score_as_in_double(spread: float) -> None:
    rng, y = np.random.default_rng(0), np.repeat(np.arange(30), 25)
    along = np.geomspace(1, 1e-3, 64)  # the eigenvalues of features fall like this, or less
    X = rng.normal(size=(30, 64))[y] + spread * along * rng.normal(size=(len(y), 64))
    whole = Problem(unit_rows(X), y, 30, HeadOptions())
    fit = LDA.fit(whole)
    exact = leave_one_out(whole.fixing(fit.chosen)).logits
    assert fit.held_out is not None
    np.testing.assert_allclose(fit.held_out.logits, exact, atol=1e-3 * np.abs(exact).max())
    np.testing.assert_array_equal(fit.held_out.logits.argmax(axis=1), exact.argmax(axis=1))
    moments = fit_moments(Moments.of(whole, gram=True), whole)
    assert fit.chosen == moments.chosen


def noisy(seed: int, spread: NDArray[np.float64], per_class: int, apart: float = 0.3) -> Problem:
    """Five classes, so far apart in each dimension, whose rows are spread about their means by so much."""
    rng, y = np.random.default_rng(seed), np.repeat(np.arange(5), per_class)
    X = apart * rng.normal(size=(5, len(spread)))[y] + spread * rng.normal(size=(len(y), len(spread)))
    return Problem(unit_rows(X), y, 5, HeadOptions())


def test_it_shrinks_as_far_as_rows_left_out_are_served_best() -> None:
    """Little where noise has directions of its own and rows are many, far where they are few and noise is the same."""
    directed = LDA.fit(noisy(0, np.where(np.arange(60) < 15, 3.0, 0.1), 40, apart=0.05))
    alike = LDA.fit(noisy(0, np.full(20, 0.5), 20))
    assert directed.chosen["shrinkage"] < 1 < alike.chosen["shrinkage"]
    for fit in (directed, alike):
        assert fit.held_out is not None
        assert fit.held_out.method == "leave-one-out"


def test_how_far_is_a_matter_of_the_rows_and_not_of_their_order() -> None:
    whole = noisy(3, np.linspace(0.1, 2.0, 30), 12)
    turned = replace(whole, Z=whole.Z[::-1].copy(), y=whole.y[::-1].copy())
    by_sums = fit_moments(Moments.of(turned, gram=True), turned)
    assert LDA.fit(whole).chosen == LDA.fit(turned).chosen == by_sums.chosen


@pytest.mark.parametrize("per_class", [1, 2, 4])
def test_under_five_of_a_class_say_nothing_of_how_far(per_class: int) -> None:
    assert LDA.fit(noisy(1, np.full(20, 0.5), per_class)).chosen == {"shrinkage": 1.0}


def test_how_far_can_be_said(digits: Data) -> None:
    X, labels, ids = digits
    answers = {}
    for shrinkage in (1e-3, 1e3):
        head = train(X[:300], labels[:300], ids[:300], kind="lda", options={"shrinkage": shrinkage})
        assert head.chosen == {"shrinkage": shrinkage}
        answers[shrinkage] = [p.best for p in head.predict(X[300:])]
    ncm = [p.best for p in train(X[:300], labels[:300], ids[:300], kind="ncm").predict(X[300:])]
    agreeing = {
        s: np.mean([one == other for one, other in zip(found, ncm, strict=True)]) for s, found in answers.items()
    }
    assert agreeing[1e-3] < 0.95
    assert agreeing[1e3] > 0.99
    with pytest.raises(InvalidArgument, match="shrinkage"):
        train(X[:300], labels[:300], ids[:300], kind="lda", options={"shrinkage": 0})


def test_balanced_weights_let_a_small_class_shape_the_covariance() -> None:
    whole = problem([60, 6], 8)
    balanced = replace(whole, options=HeadOptions(class_weight="balanced", shrinkage=1.0))
    weights = np.where(whole.y == 0, 66 / 120, 66 / 12)
    means = np.stack([whole.Z[whole.y == c].mean(axis=0) for c in range(2)])
    R = whole.Z - means[whole.y]
    A = (R.T * weights) @ R
    ridge = np.trace(A) / (len(R) - 1)
    expected = ridge * np.linalg.inv(A + ridge * np.eye(8)) @ means.T
    np.testing.assert_allclose(LDA.fit(balanced).scorer.arrays()["W"], expected, atol=1e-10)
    assert LDA.held_out(balanced).method == "5-fold cross-validation"
