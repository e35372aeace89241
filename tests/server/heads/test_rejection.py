from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.heads import TrainedHead, evaluate, train
from likewise_server.heads.base import unit_rows
from likewise_server.heads.evaluation import auroc
from likewise_server.heads.likeness import fit_likeness
from likewise_server.heads.rejection import distance, fit_rejection

Data = tuple[NDArray[np.float32], list[str], list[str]]


@pytest.mark.parametrize("cap", [0.01, 0.05, 0.2])
def test_rejection_keeps_its_cap_and_finds_unknown_digits(digits: Data, cap: float) -> None:
    X, labels, ids = digits[0], np.array(digits[1]), digits[2]
    known = np.flatnonzero(np.isin(labels, list("01234")))
    rows, fresh = known[:300], np.concatenate([known[300:], np.flatnonzero(~np.isin(labels, list("01234")))])
    head = train(X[rows], list(labels[rows]), [ids[i] for i in rows], kind="ncm", options={"max_false_reject": cap})
    assert head.metrics.false_reject_rate is not None
    assert head.metrics.false_reject_rate <= cap
    result = evaluate(head, X[fresh], list(labels[fresh]))
    assert result.false_reject_rate is not None
    assert result.unknown_accept_rate is not None
    assert result.false_reject_rate <= cap + 0.04
    assert result.unknown_accept_rate < {0.01: 0.9, 0.05: 0.65, 0.2: 0.4}[cap]
    assert result.unknown_labels == {c: int((labels == c).sum()) for c in "56789"}


def test_a_gap_between_known_and_unknown_is_halved() -> None:
    near = np.eye(40)[np.repeat(np.arange(3), 30)] + 0.1 * np.eye(40)[np.arange(90) % 30 + 5]
    found = fit_rejection(unit_rows(near).astype(np.float32), np.repeat(np.arange(3), 30), 0.05, 0)
    assert (found.false_reject_rate, found.unknown_accept_rate) == (0.0, 0.0)
    assert 0.3 < found.threshold < 0.7


@pytest.mark.parametrize(("n", "d"), [(24, 60), (60, 10)])
@pytest.mark.parametrize("centred", [False, True])
def test_likeness_is_ridge_regression_and_leaves_out_exactly(n: int, d: int, centred: bool) -> None:
    rng = np.random.default_rng(3)
    y = np.sort(np.concatenate([[0, 0, 1, 1, 2, 2, 2], rng.integers(0, 3, n - 7)]))
    rows = unit_rows(rng.normal(size=(n, d)) + np.eye(d)[y] * 2)
    mean = rows.mean(axis=0) / 2 if centred else None
    likeness, left = fit_likeness(rows, y, mean)

    Z, counts = unit_rows(rows, mean), np.bincount(y)

    def refit(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        weights = (n / 3 / counts[y])[kept]
        G = (Z[kept].T * weights) @ Z[kept] + np.eye(d)
        return np.asarray(np.linalg.solve(G, (Z[kept].T * weights) @ np.eye(3)[y[kept]]))

    np.testing.assert_allclose(likeness.of(rows), (Z @ refit(y >= 0)).max(axis=1), atol=1e-5)
    for i in range(0, n, 5):
        one = np.arange(n) != i
        assert left.row[i] == pytest.approx((Z[i] @ refit(one)).max(), abs=1e-9)
        others = np.delete(Z[i] @ refit(y != y[i]), y[i])
        assert left.whole_class[i] == pytest.approx(others.max(), abs=1e-9)


@pytest.mark.parametrize("shots", [2, 5])
@pytest.mark.parametrize("centred", [False, True])
def test_novelty_parts_unknown_species_better_than_the_distance_alone(photos: Data, shots: int, centred: bool) -> None:
    X, species, ids = photos[0], np.array(photos[1]), photos[2]
    names = np.unique(species)
    gains = []
    for turn in range(10):
        known = np.roll(names, turn)[:5]
        rows = np.concatenate([np.flatnonzero(species == name)[:shots] for name in known])
        rest = np.setdiff1d(np.arange(len(species)), rows)
        mean = unit_rows(X[species != names[turn]]).mean(axis=0) if centred else None
        head = train(X[rows], list(species[rows]), [ids[i] for i in rows], kind="ncm", pool_mean=mean)
        is_known, novelty = np.isin(species[rest], known), head.scores(X[rest])[1]
        far = distance(unit_rows(X[rest]) @ head.supports.T, head.rejection.k)
        gains.append(auroc(novelty[is_known], novelty[~is_known]) - auroc(far[is_known], far[~is_known]))
    assert np.mean(gains) > 0.01


def test_many_examples_of_few_dimensions_go_by_the_distance_alone(digits: Data) -> None:
    X, labels, ids = digits[0], np.array(digits[1]), digits[2]
    known = np.flatnonzero(np.isin(labels, list("01234")))[:600]
    head = train(X[known], list(labels[known]), [ids[i] for i in known], kind="ncm")
    assert head.rejection.likeness is None
    few = np.concatenate([np.flatnonzero(labels == c)[:3] for c in "01234"])
    assert train(X[few], list(labels[few]), [ids[i] for i in few], kind="ncm").rejection.likeness is not None


def test_the_collections_mean_serves_novelty_whether_or_not_the_scores_are_centred(digits: Data) -> None:
    X, labels, ids = digits[0][:40], digits[1][:40], digits[2][:40]
    mean = unit_rows(digits[0]).mean(axis=0)
    bare, known = (train(X, labels, ids, kind="ncm", pool_mean=one) for one in (None, mean))
    np.testing.assert_array_equal(bare.scores(X)[0], known.scores(X)[0])
    assert not np.allclose(bare.scores(X)[1], known.scores(X)[1])
    centred = train(X, labels, ids, kind="ncm", options={"center": True}, pool_mean=mean)
    np.testing.assert_array_equal(centred.scores(X)[1], known.scores(X)[1])


def test_heads_stored_before_there_was_a_likeness_go_by_the_distance(digits: Data) -> None:
    X, labels, ids = digits[0][:40], digits[1][:40], digits[2][:40]
    head = train(X, labels, ids, kind="ncm", pool_mean=unit_rows(digits[0]).mean(axis=0))
    before = replace(head, rejection=replace(head.rejection, likeness=None, threshold=0.25), pool_mean=None)
    meta = before.meta()
    assert meta["rejection"] == {
        "k": 3,
        "threshold": 0.25,
        "false_reject_rate": head.metrics.false_reject_rate,
        "unknown_accept_rate": head.metrics.unknown_accept_rate,
        "warning": head.rejection.warning,
    }
    again = TrainedHead.from_bytes(before.to_bytes(), meta)
    assert again.rejection.likeness is None
    queries = digits[0][40:80]
    expected = distance(unit_rows(queries).astype(np.float32) @ head.supports.T, 3)
    np.testing.assert_array_equal(again.scores(queries)[1], expected)
    assert [p.label is None for p in again.predict(queries)] == (expected > 0.25).tolist()


def test_a_head_with_likeness_rejects_the_same_after_storage(digits: Data) -> None:
    X, labels, ids = digits[0][:40], digits[1][:40], digits[2][:40]
    head = train(X, labels, ids, pool_mean=unit_rows(digits[0]).mean(axis=0))
    again = TrainedHead.from_bytes(head.to_bytes(), head.meta())
    assert again.rejection.likeness is not None
    np.testing.assert_array_equal(again.scores(digits[0])[1], head.scores(digits[0])[1])


@pytest.mark.parametrize("sizes", [[1], [1, 1], [2, 1], [1, 1, 1, 1], [3, 3], [5, 5, 5], [1, 200]])
@pytest.mark.parametrize("centred", [False, True])
def test_an_example_shown_again_is_never_unknown_at_any_size(sizes: list[int], centred: bool) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = np.eye(12)[y] + 0.05 * np.random.default_rng(1).normal(size=(len(y), 12))
    mean = np.full(12, 0.2) if centred else None
    head = train(X, [f"c{c}" for c in y], [f"{i:03}" for i in range(len(y))], kind="ncm", pool_mean=mean)
    assert np.mean([p.label is None for p in head.predict(X)]) <= 0.05
    assert head.predict([-X.sum(axis=0)])[0].label is None


def test_a_rare_class_is_not_taken_for_unknown(photos: Data) -> None:
    X, species, ids = photos[0], np.array(photos[1]), photos[2]
    names = np.unique(species)[:4]
    sizes = [9, 9, 9, 3]
    rows = np.concatenate([np.flatnonzero(species == n)[:size] for n, size in zip(names, sizes, strict=True)])
    head = train(X[rows], list(species[rows]), [ids[i] for i in rows], kind="lda")
    fresh = np.setdiff1d(np.flatnonzero(species == names[3]), rows)
    assert np.mean([p.label is None for p in head.predict(X[fresh])]) <= 0.3
