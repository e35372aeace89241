from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.errors import InvalidArgument
from likewise_server.heads import HeadOptions, evaluate, train
from likewise_server.heads.base import HeldOut
from likewise_server.heads.calibration import fit_temperature, probabilities
from likewise_server.heads.validate import fold_numbers, stratified, wilson

Data = tuple[NDArray[np.float32], list[str], list[str]]
X4, L4, I4 = np.eye(4), ["a", "a", "b", "b"], list("wxyz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.full((4, 4), np.nan)}, "NaN"),
        ({"vectors": np.full((4, 4), np.inf)}, "infinity"),
        ({"vectors": np.diag([1.0, 1, 0, 1])}, "vector 2 is all zeros"),
        ({"vectors": X4[0]}, "shape"),
        ({"vectors": X4[:0], "labels": [], "ids": []}, "at least one row"),
        ({"vectors": [["x"]]}, "array of numbers"),
        ({"labels": ["a"]}, "1 labels"),
        ({"labels": ["a", "a", " ", "b"]}, "label 2"),
        ({"labels": ["a", None, "b", "b"]}, "label 1"),
        ({"ids": ["w"]}, "1 ids"),
        ({"ids": ["w", "w", "y", "z"]}, "'w' is given twice"),
        ({"kind": "forest"}, "unknown kind of head 'forest': use one of auto, ncm"),
        ({"options": {"center": True}}, "collection's mean"),
        ({"options": {"k": 3}, "kind": "ncm"}, "no option 'k'"),
        ({"options": {"k": 2.5}, "kind": "knn"}, "whole number"),
        ({"options": {"C": -1}, "kind": "logreg"}, "greater than 0"),
        ({"options": {"C": True}, "kind": "logreg"}, "number"),
        ({"options": {"lam": float("nan")}, "kind": "ridge"}, "number"),
        ({"options": {"class_weight": "even"}, "kind": "ridge"}, "'balanced'"),
        ({"options": {"center": "yes"}}, "true or false"),
        ({"options": {"max_false_reject": 1}}, "between 0 and 1"),
        ({"options": {"prior": [1, 2]}}, "map every class"),
        ({"pool_mean": np.zeros(3)}, "4 finite numbers"),
        ({"content_hashes": ["h"]}, "1 content hashes"),
    ],
)
def test_a_bad_request_is_told_what_to_do(change: dict[str, Any], message: str) -> None:
    request: dict[str, Any] = {"vectors": X4, "labels": L4, "ids": I4, **change}
    with pytest.raises(InvalidArgument, match=message):
        train(request.pop("vectors"), request.pop("labels"), request.pop("ids"), **request)


def test_options_come_as_json_numbers() -> None:
    assert HeadOptions.parse("knn", {"k": 5.0, "seed": 1.0}) == HeadOptions(k=5, seed=1)
    assert HeadOptions.parse("logreg", {"C": None}).given() == {}
    assert HeadOptions.parse("auto", {"center": False}).given() == {"center": False}


def test_suspicious_labels_are_warned_of_and_left_alone() -> None:
    head = train(
        np.eye(6), ["Cat", "cat", "c at", "dog ", "dog ", "owl"], list("uvwxyz"), content_hashes=list("112345")
    )
    text = "\n".join(head.warnings)
    assert "differ only in case or spaces are separate classes: 'Cat', 'c at', 'cat'" in text
    assert "'dog ' begins or ends with a space" in text
    assert "the same picture is in more than one class: 'u' as 'Cat', 'v' as 'cat'" in text
    assert "1 of 6 examples repeat a picture" in text
    assert "4 of 5 classes have one example" in text
    assert head.classes == ("Cat", "c at", "cat", "dog ", "owl")


def test_importing_heads_is_cheap() -> None:
    code = (
        "import sys, likewise_server.heads as h; h.kinds(); print([m for m in sys.modules if m in "
        "('sklearn', 'scipy', 'torch', 'faiss', 'grpc', 'safetensors')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_wilson_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for n in (5, 25, 200):
        for share in (0.5, 0.8, 0.95):
            hits = rng.binomial(n, share, size=4000)
            bounds = {int(h): wilson(int(h), n) for h in np.unique(hits)}
            covered = np.mean([bounds[int(h)][0] <= share <= bounds[int(h)][1] for h in hits])
            assert covered > 0.91
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_leave_one_out_accuracy_covers_the_truth(digits: Data) -> None:
    X, labels, ids = digits
    covered = 0
    for start in range(0, 900, 60):
        part = slice(start, start + 60)
        head = train(X[part], labels[part], ids[part], kind="ridge")
        truth = evaluate(head, X[900:], labels[900:], reject=False).accuracy
        low, high = head.metrics.accuracy_low, head.metrics.accuracy_high
        assert truth is not None
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    assert covered >= 13


def test_folds_are_stratified_and_never_lose_a_class() -> None:
    y = np.repeat(np.arange(4), [1, 2, 3, 30])
    fold = fold_numbers(y, 3, seed=0)
    assert fold[0] == -1
    for number in range(3):
        assert set(y[fold != number]) == {0, 1, 2, 3}
        assert (y[fold == number] == 3).sum() == 10
    kept = stratified(y, np.arange(len(y)), 18, seed=0)
    assert np.bincount(y[kept]).tolist() == [1, 2, 2, 15]


def test_a_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5))
    shares = probabilities(logits, 1.0, np.zeros(5))
    y = np.array([rng.choice(5, p=p) for p in shares])
    held = HeldOut(logits * 7, np.arange(4000), 4000, "leave-one-out")
    assert fit_temperature(held, y) == pytest.approx(7, rel=0.1)


def test_few_faultless_examples_are_no_certainty() -> None:
    held = HeldOut(np.eye(3) * 5, np.arange(3), 3, "leave-one-out")
    temperature = fit_temperature(held, np.arange(3))
    assert probabilities(held.logits, temperature, np.zeros(3)).max() == pytest.approx(3.25 / 3.5, abs=0.01)


def test_evaluation_counts_what_was_answered() -> None:
    head = train(np.eye(3), ["a", "b", "c"], ["x", "y", "z"], kind="ncm")
    queries: list[list[float]] = [[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1], [-1, -1, -1]]
    result = evaluate(head, queries, ["a", "b", "b", "c", "c", "new"])
    assert result.confusion.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert (result.n, result.n_known, result.accuracy) == (6, 5, 3 / 5)
    assert (result.per_class["a"].precision, result.per_class["a"].recall) == (0.5, 1.0)
    assert result.macro_f1 == pytest.approx(2 / 3)
    assert (result.false_reject_rate, result.unknown_accept_rate) == (0.2, 0.0)
    assert result.unknown_labels == {"new": 1}
    assert result.rejection_curve[-1][0] == 1.0
    assert result.rejection_curve[0][1] == 1.0
    assert result.ece is not None
    only_new = evaluate(head, queries[:1], ["new"])
    assert (only_new.accuracy, only_new.ece, only_new.unknown_accept_rate) == (None, None, 1.0)


def test_evaluation_agrees_with_scikit_learn(digits: Data) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # noqa: PLC0415

    X, labels, ids = digits
    head = train(X[:100], labels[:100], ids[:100], kind="ncm")
    got = evaluate(head, X[100:], labels[100:], reject=False)
    best = [p.best for p in head.predict(X[100:])]
    assert (got.confusion[:10, :10] == confusion_matrix(labels[100:], best)).all()
    rows = np.array([[r.precision, r.recall, r.f1, r.support] for r in got.per_class.values()])
    np.testing.assert_allclose(rows.T, precision_recall_fscore_support(labels[100:], best))


def test_a_large_set_is_measured_on_a_stated_part(monkeypatch: pytest.MonkeyPatch, digits: Data) -> None:
    for name in ("knn.MAX_LEFT_OUT", "validate.MAX_HELD_OUT", "rejection.MAX_MEASURED"):
        monkeypatch.setattr(f"likewise_server.heads.{name}", 100)
    monkeypatch.setattr("likewise_server.heads.training.MAX_SUPPORTS", 150)
    X, labels, ids = digits[0][:400], digits[1][:400], digits[2][:400]
    votes = train(X, labels, ids, kind="knn")
    assert votes.metrics.n_held_out < 130
    assert "measured on" in votes.metrics.note
    assert len(votes.support_ids) == 400
    means = train(X, labels, ids, kind="ncm")
    assert len(means.support_ids) < 170
    assert any("of the 400 examples" in warning for warning in means.warnings)
    assert means.metrics.n == 400
