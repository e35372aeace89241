"""What an evaluation says beyond accuracy: reliability, how well novelty parts, and the surest mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.heads import Evaluation, TrainedHead, evaluate, train

Measured = tuple[TrainedHead, Evaluation, list[str], NDArray[np.float32]]


@pytest.fixture
def measured(digits: tuple[NDArray[np.float32], list[str], list[str]]) -> Measured:
    """A head for the digits 0 to 7, measured on all ten."""
    X, labels, ids = digits
    known = [i for i in range(200) if labels[i] < "8"]
    head = train(X[known], [labels[i] for i in known], [ids[i] for i in known], kind="ridge")
    return head, evaluate(head, X[200:900], labels[200:900]), labels[200:900], X[200:900]


def test_reliability_adds_up_to_the_calibration_error(
    measured: Measured,
) -> None:
    head, found, labels, X = measured
    assert sum(part.n for part in found.reliability) == found.n_known
    answers = [p for p, label in zip(head.predict(X), labels, strict=True) if label < "8"]
    right = [p.best == label for p, label in zip(answers, (each for each in labels if each < "8"), strict=True)]
    gaps = 0.0
    for i in range(15):
        inside = [j for j, p in enumerate(answers) if i / 15 <= p.score < (i + 1) / 15 or (i == 14 and p.score == 1)]
        if inside:
            gaps += abs(sum(answers[j].score - right[j] for j in inside)) / found.n_known
    assert found.ece == pytest.approx(gaps)
    assert [part.score for part in found.reliability] == sorted(part.score for part in found.reliability)
    shares = sum(part.accuracy * part.n for part in found.reliability)
    assert shares == pytest.approx(sum(right))


def test_rejection_auroc_agrees_with_scikit_learn(
    measured: Measured,
) -> None:
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    head, found, labels, X = measured
    _, novelty = head.scores(X)
    other = np.array([label >= "8" for label in labels])
    assert found.rejection_auroc == pytest.approx(roc_auc_score(other, novelty))
    assert 0.5 < (found.rejection_auroc or 0) < 1
    known = evaluate(head, X[~other], [label for label in labels if label < "8"])
    assert known.rejection_auroc is None
    rounded = evaluate(head, np.concatenate([X[:1], X[:1]]), ["0", "9"])
    assert rounded.rejection_auroc == 0.5, "a tie counts half"


def test_mistakes_are_the_surest_wrong_answers(measured: Measured) -> None:
    head, found, labels, X = measured
    wrong = [
        (p.score, row)
        for row, (p, label) in enumerate(zip(head.predict(X), labels, strict=True))
        if p.label is not None and p.label != label
    ]
    assert len(wrong) > 50
    assert [m.score for m in found.mistakes] == pytest.approx(sorted((s for s, _ in wrong), reverse=True)[:50])
    answers = head.predict(X)
    for mistake in found.mistakes:
        assert mistake.answer == answers[mistake.row].label != labels[mistake.row]
