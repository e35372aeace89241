from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.heads import train
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.logreg import KIND as LOGREG
from likewise_server.heads.ncm import KIND as NCM
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.ridge import KIND as RIDGE
from likewise_server.heads.ridge import LAMBDAS, leave_one_out

Data = tuple[NDArray[np.float32], list[str], list[str]]


def problem(n: int, d: int, n_classes: int, noise: float = 1.5, **options: Any) -> Problem:
    rng = np.random.default_rng(n * d)
    y = np.arange(n) % n_classes
    X = rng.normal(size=(n_classes, d))[y] + noise * rng.normal(size=(n, d))
    return Problem(unit_rows(X), y, n_classes, HeadOptions(**options))


def nearest_centroid(X: NDArray[Any], y: NDArray[Any], queries: NDArray[Any]) -> NDArray[Any]:
    X, queries = (V / np.linalg.norm(V, axis=1, keepdims=True) for V in (X, queries))
    classes = np.unique(y)
    centroids = np.stack([X[y == c].mean(axis=0) for c in classes])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return np.asarray(classes[(queries @ centroids.T).argmax(axis=1)])


@pytest.mark.parametrize("shots", [1, 5])
def test_ncm_is_numpys_nearest_centroid_on_digits(digits: Data, shots: int) -> None:
    assert_ncm_is_nearest_centroid(digits, shots)


@pytest.mark.shared
@pytest.mark.parametrize("shots", [1, 5])
def test_ncm_is_numpys_nearest_centroid_on_photographs(photos: Data, shots: int) -> None:
    assert_ncm_is_nearest_centroid(photos, shots)


def assert_ncm_is_nearest_centroid(data: Data, shots: int) -> None:
    X, y = data[0].astype(np.float64), np.array(data[1])
    rows = np.concatenate([np.flatnonzero(y == c)[:shots] for c in np.unique(y)])
    rest = np.setdiff1d(np.arange(len(y)), rows)
    # A pool mean is there, as it is in a server; without `center` it must change nothing.
    head = train(X[rows], list(y[rows]), [data[2][i] for i in rows], kind="ncm", pool_mean=X.mean(axis=0))
    got = [p.best for p in head.predict(X[rest])]
    assert got == list(nearest_centroid(X[rows], y[rows], X[rest]))


@pytest.mark.shared
def test_every_kind_learns_photographs_from_five_of_each(photos: Data) -> None:
    X, labels, ids = photos
    few = [i for i in range(len(ids)) if i % 10 < 5]
    rest = [i for i in range(len(ids)) if i % 10 >= 5]
    for kind, least in [
        ("ncm", 0.85),
        ("ridge", 0.85),
        ("lda", 0.85),
        ("logreg", 0.85),
        ("knn", 0.7),
        ("mlp", 0.8),
        ("ensemble", 0.85),
        ("auto", 0.85),
    ]:
        head = train(X[few], [labels[i] for i in few], [ids[i] for i in few], kind=kind)
        right = [p.best == labels[i] for p, i in zip(head.predict(X[rest]), rest, strict=True)]
        assert np.mean(right) >= least, kind


def test_centred_ncm_subtracts_the_mean_between_two_normalisations(digits: Data) -> None:
    X, labels, ids = digits[0][:200], digits[1][:200], digits[2][:200]
    unit = X.astype(np.float64) / np.linalg.norm(X, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    head = train(X, labels, ids, kind="ncm", options={"center": True}, pool_mean=mean)
    got = [p.best for p in head.predict(digits[0][200:500])]
    rest = digits[0][200:500].astype(np.float64)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    assert got == list(nearest_centroid(unit - mean, np.array(labels), rest - mean))


def brute_force(kind: Any, whole: Problem) -> NDArray[np.float64]:
    logits = []
    for i in range(len(whole.y)):
        inside = whole.take(np.delete(np.arange(len(whole.y)), i))
        logits.append(kind.fit(inside).scorer.logits(whole.Z[i : i + 1], whole.Z[i : i + 1] @ inside.Z.T)[0])
    return np.array(logits)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)])
def test_ncms_closed_form_is_leaving_each_row_out(n: int, d: int) -> None:
    whole = problem(n, d, 3)
    np.testing.assert_allclose(NCM.held_out(whole).logits, brute_force(NCM, whole), atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)])
@pytest.mark.parametrize("lam", [1e-6, 1e-1, 1e3])
def test_ridges_closed_form_is_leaving_each_row_out(n: int, d: int, lam: float) -> None:
    whole = problem(n, d, 3, lam=lam)
    np.testing.assert_allclose(leave_one_out(whole).logits, brute_force(RIDGE, whole), atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "n", "d"),
    [(1.5, 40, 10), (1.5, 400, 90), (0.3, 900, 30), (40.0, 300, 60), (0.0, 60, 20), (1e-4, 500, 12)],
)
def test_ridge_takes_the_lambda_of_least_leave_one_out_error(noise: float, n: int, d: int) -> None:
    whole = problem(n, d, 4, noise)
    losses = []
    for lam in LAMBDAS:
        fixed = whole.fixing({"lam": float(lam)})
        losses.append(((leave_one_out(fixed).logits - whole.one_hot) ** 2).sum())
    assert losses[list(LAMBDAS).index(RIDGE.fit(whole).chosen["lam"])] <= min(losses) * (1 + 1e-6)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize(("n", "d"), [(31, 8), (13, 40)])
def test_ridge_solves_the_normal_equations(n: int, d: int, weight: str | None) -> None:
    whole = problem(n, d, 3, lam=0.1, class_weight=weight)
    G = (whole.Z.T * whole.weights) @ whole.Z
    Q = (whole.Z.T * whole.weights) @ whole.one_hot
    expected = np.linalg.solve(G + 0.1 * np.eye(d), Q)
    np.testing.assert_allclose(RIDGE.fit(whole).scorer.arrays()["W"], expected, atol=1e-9)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(61, 8), (23, 40)])
def test_logreg_reaches_scikit_learns_optimum(n: int, d: int, n_classes: int, weight: str | None) -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    whole = problem(n, d, n_classes, C=3.0, class_weight=weight)
    theirs = LogisticRegression(C=3.0, class_weight=weight, tol=1e-9, max_iter=5000).fit(whole.Z, whole.y)
    logits = LOGREG.fit(whole).scorer.logits(whole.Z, whole.Z)
    ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs.predict_proba(whole.Z), atol=1e-4)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(("n", "d"), [(300, 40), (120, 200)])
def test_logreg_reaches_the_optimum_on_features_with_a_large_mean_and_few_loud_directions(
    n: int, d: int, C: float
) -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    rng = np.random.default_rng(0)
    y = np.arange(n) % 5
    X = rng.normal(size=(5, d))[y] + rng.normal(size=(n, d)) + 3 * rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) + 4
    whole = Problem(unit_rows(X), y, 5, HeadOptions(C=C))
    theirs = LogisticRegression(C=C, solver="newton-cg", tol=1e-8, max_iter=2000).fit(whole.Z, y)
    ours = LOGREG.fit(whole)

    def loss(W: NDArray[Any], b: NDArray[Any]) -> float:
        logits = whole.Z @ W + b
        logits -= logits.max(axis=1, keepdims=True)
        fit = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(n), y]
        return float(fit.mean() + (W**2).sum() / (2 * C * n))

    assert not ours.warnings
    found = ours.scorer.arrays()
    assert loss(found["W"], found["b"]) == pytest.approx(loss(theirs.coef_.T, theirs.intercept_), abs=1e-4)


def test_logreg_keeps_c_at_one_where_a_class_has_two_rows(digits: Data) -> None:
    X, labels = digits[0], np.array(digits[1])
    rows = np.concatenate([np.flatnonzero(labels == c)[:s] for c, s in [("0", 5), ("1", 5), ("2", 2)]])
    head = train(X[rows], list(labels[rows]), [str(i) for i in rows], kind="logreg")
    assert head.chosen == {"C": 1.0}


def test_knn_counts_votes_by_nearness() -> None:
    angles = np.deg2rad([0, 10, 40, 50, 60])
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    head = train(X, ["a", "a", "b", "b", "b"], list("vwxyz"), kind="knn", options={"temperature": 1.0, "k": 4})
    similarity = np.cos(angles - np.deg2rad(20))
    votes = np.exp(similarity[:4] / 0.07)
    share = votes[:2].sum() / votes.sum()
    (prediction,) = head.predict([[np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))]])
    assert prediction.probabilities[0] == pytest.approx((share + 0.005) / 1.01, abs=1e-5)
    assert [n.id for n in prediction.neighbours] == ["w", "v", "x"]


def test_balanced_weights_help_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(220, 3)) + np.r_[np.tile([2.0, 0, 0], (200, 1)), np.tile([0.5, 1, 0], (20, 1))]
    labels, ids = ["often"] * 200 + ["rare"] * 20, [f"{i:03d}" for i in range(220)]
    for kind in ("ridge", "logreg", "knn", "ensemble"):
        plain = train(X, labels, ids, kind=kind)
        even = train(X, labels, ids, kind=kind, options={"class_weight": "balanced"})
        found = [sum(p.best == "rare" for p in head.predict(X[200:])) for head in (plain, even)]
        assert found[1] > found[0], kind
