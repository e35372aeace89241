from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.errors import InvalidArgument
from likewise_server.heads import TrainedHead, evaluate, train
from likewise_server.heads.ensemble import Members

Data = tuple[NDArray[np.float32], list[str], list[str]]
METHODS = ("average", "bagging", "boosting", "stacking")
every_method = pytest.mark.parametrize("method", METHODS)


def fit(data: Data, n: int, **options: Any) -> TrainedHead:
    return train(data[0][:n], data[1][:n], data[2][:n], kind="ensemble", options=options)


def accuracy(head: TrainedHead, data: Data, start: int = 900) -> float:
    found = evaluate(head, data[0][start:], data[1][start:], reject=False).accuracy
    assert found is not None
    return found


def members(head: TrainedHead) -> Members:
    assert isinstance(head.scorer, Members)
    return head.scorer


@every_method
def test_every_method_learns_digits_measures_itself_and_comes_back_from_its_bytes(digits: Data, method: str) -> None:
    head = fit(digits, 300, method=method)
    truth = accuracy(head, digits)
    assert truth > 0.85
    metrics = head.metrics
    assert metrics.accuracy_low is not None
    assert metrics.accuracy_high is not None
    assert metrics.accuracy_low - 0.02 <= truth <= metrics.accuracy_high + 0.02
    again = TrainedHead.from_bytes(head.to_bytes(), json.loads(json.dumps(head.meta())))
    assert again.scores(digits[0][900:])[0].tobytes() == head.scores(digits[0][900:])[0].tobytes()


def test_an_average_is_the_mean_of_its_members_calibrated_log_probabilities(digits: Data) -> None:
    head = fit(digits, 200, members=["ridge", "lda"], temperature=1.0)
    Z = digits[0][900:920].astype(np.float64)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    parts = []
    for linear, temperature in zip(members(head).linears, members(head).temperatures, strict=True):
        shares = np.exp((Z @ linear.W + linear.b) / temperature)
        parts.append(np.log(shares / shares.sum(axis=1, keepdims=True)))
    mean = np.exp(np.mean(parts, axis=0))
    np.testing.assert_allclose(head.scores(Z)[0], mean / mean.sum(axis=1, keepdims=True), atol=1e-9)
    alone = train(digits[0][:200], digits[1][:200], digits[2][:200], kind="lda")
    np.testing.assert_allclose(members(head).linears[1].W, alone.scorer.arrays()["W"])


def test_members_are_calibrated_before_they_are_averaged(digits: Data) -> None:
    head = fit(digits, 300)
    assert len(members(head).linears) == 3
    # Ridge's logits lie within about one of each other, those of lda within hundredths of that.
    assert members(head).temperatures[0] > 5 * members(head).temperatures[1]
    assert head.temperature == pytest.approx(1.0, abs=0.25)
    assert set(head.chosen) == {"lam", "C", "shrinkage"}


def test_several_backbones_get_a_member_each(digits: Data) -> None:
    X, labels, ids = digits
    rng = np.random.default_rng(0)
    # The second backbone sees nothing but noise, and is a hundred times as loud.
    both = np.hstack([X, 100 * rng.normal(size=X.shape).astype(np.float32)])
    left = both[:300], labels[:300], ids[:300]
    options = {"members": ["ncm"]}
    whole = train(*left, kind="ensemble", options=options)
    parts = train(*left, kind="ensemble", options=options, blocks=(64, 64))
    assert members(parts).spans == ((0, 64), (64, 128))
    right = [evaluate(head, both[900:], labels[900:], reject=False).accuracy for head in (whole, parts)]
    assert right[0] is not None
    assert right[1] is not None
    assert right[0] < 0.5
    assert right[1] > 0.8
    again = TrainedHead.from_bytes(parts.to_bytes(), parts.meta())
    assert again.scores(both[900:])[0].tobytes() == parts.scores(both[900:])[0].tobytes()
    # Each block is scaled by itself, so how loud either is changes no answer.
    even = np.hstack([X, both[:, 64:] / 1000])
    other = train(even[:300], labels[:300], ids[:300], kind="ensemble", options=options, blocks=(64, 64))
    np.testing.assert_allclose(other.scores(even[900:])[0], parts.scores(both[900:])[0], atol=1e-4)


def test_two_kinds_on_two_blocks_are_four_members(digits: Data) -> None:
    options = {"members": "lda,ncm"}
    X, labels, ids = digits
    head = train(X[:100], labels[:100], ids[:100], kind="ensemble", options=options, blocks=(40, 24))
    assert members(head).spans == ((0, 40), (0, 40), (40, 64), (40, 64))


def test_a_row_with_nothing_in_a_block_is_classified_by_the_others() -> None:
    X = np.array([[1, 0.1, 0, 0], [0.9, 0, 0.1, 1], [0, 1, 0, 0.1], [0.1, 1, 0.2, 0]])
    head = train(X, ["a", "a", "b", "b"], list("wxyz"), kind="ensemble", blocks=(2, 2))
    assert [p.best for p in head.predict([[2, 0, 0, 0], [0, 3, 0, 0]])] == ["a", "b"]


def test_bagging_keeps_every_class_and_its_spread_is_larger_where_it_is_wrong(digits: Data) -> None:
    X, labels, ids = digits
    rows = [*range(150), labels.index("7", 150)]
    head = train(
        X[rows],
        ["seven" if i == rows[-1] else labels[i] for i in rows],
        [ids[i] for i in rows],
        kind="ensemble",
        options={"method": "bagging", "members": 8},
    )
    assert "seven" in head.classes
    assert len(members(head).linears) == 8
    assert all(np.abs(linear.W).max() > 0.01 for linear in members(head).linears)
    assert head.metrics.method == "out-of-bag"
    head = fit(digits, 150, method="bagging")
    predictions = head.predict(X[900:])
    wrong = np.array([p.best != label for p, label in zip(predictions, labels[900:], strict=True)])
    spread = np.array([p.spread for p in predictions], dtype=float)
    assert spread.min() > 0
    assert spread.max() < 0.5
    assert spread[wrong].mean() > spread[~wrong].mean()


def test_only_ensembles_have_a_spread(digits: Data) -> None:
    X, labels, ids = digits
    for kind, options in (("ridge", {}), ("knn", {}), ("mlp", {"epochs": 2})):
        head = train(X[:40], labels[:40], ids[:40], kind=kind, options=options)
        assert head.predict(X[:1])[0].spread is None
    assert fit(digits, 40).predict(X[:1])[0].spread is not None


def test_boosting_turns_to_what_the_first_member_missed(digits: Data) -> None:
    head = fit(digits, 400, method="boosting")
    every, X = members(head), digits[0][:400].astype(np.float64)
    assert len(every.linears) > 1
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    y = np.array([head.classes.index(label) for label in digits[1][:400]])
    first = every.linears[0].logits(Z, Z).argmax(axis=1) == y
    together = every.logits(Z, Z).argmax(axis=1) == y
    assert first.sum() < 400
    assert together[~first].mean() > 0.2
    assert together.sum() > first.sum()


def test_boosting_says_so_when_there_is_nothing_to_boost() -> None:
    X = np.repeat(np.eye(4), 6, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(24, 4))
    labels = [f"c{i // 6}" for i in range(24)]
    head = train(X, labels, [f"{i:02d}" for i in range(24)], kind="ensemble", options={"method": "boosting"})
    assert len(members(head).linears) == 1
    assert any("one member" in warning for warning in head.warnings)


def test_stacking_finds_out_which_member_to_trust(digits: Data) -> None:
    X, labels, ids = digits
    noise = np.random.default_rng(1).normal(size=(len(X), 64)).astype(np.float32)
    # Two blocks of noise outvote one of digits; a second level learns not to listen.
    three = np.hstack([X, noise, noise[::-1]])
    left = three[:400], labels[:400], ids[:400]
    stacked = train(*left, kind="ensemble", options={"method": "stacking"}, blocks=(64, 64, 64))
    found = evaluate(stacked, three[900:], labels[900:], reject=False).accuracy
    assert found is not None
    assert found > 0.85
    assert "2-fold" not in stacked.metrics.method
    assert "folds" in stacked.metrics.method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "voting"}, "'average' or 'bagging'"),
        ({"members": ["ridge", "knn"]}, "among ncm, ridge, lda, logreg"),
        ({"members": []}, "must list kinds"),
        ({"members": 5}, "must list kinds"),
        ({"members": ["ridge"], "method": "bagging"}, "whole number"),
        ({"members": 0, "method": "boosting"}, "whole number"),
        ({"method": "stacking"}, "needs 10 examples of every class, and one has"),
    ],
)
def test_what_an_ensemble_cannot_be_is_refused(digits: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        fit(digits, 40, **options)


@pytest.mark.parametrize("blocks", [(32, 31), (64, 0), (65, -1)])
def test_blocks_have_to_add_up(digits: Data, blocks: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="widths of the parts of vectors of 64"):
        train(digits[0][:20], digits[1][:20], digits[2][:20], kind="ensemble", blocks=blocks)


@every_method
def test_given_members_and_hyperparameters_are_kept_with_the_head(digits: Data, method: str) -> None:
    count = {"members": 3.0} if method in {"bagging", "boosting"} else {"members": "lda,ridge"}
    head = fit(digits, 200, method=method, lam=0.5, **count)
    kept = 3 if "members" in count and isinstance(count["members"], float) else ["lda", "ridge"]
    assert json.loads(json.dumps(head.options)) == head.options
    assert head.options["members"] == kept
    assert head.chosen["lam"] == 0.5
