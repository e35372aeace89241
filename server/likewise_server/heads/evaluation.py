"""How a head does on labelled vectors it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.inputs import check_labels
from likewise_server.heads.validate import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Rows, Vector
    from likewise_server.heads.head import TrainedHead

ECE_BINS = 15
CURVE_POINTS = 20
MOST_MISTAKES = 50


@dataclass(frozen=True)
class ClassReport:
    """One class: support is the number of rows with that label."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The known rows whose best class's probability lies in one of 15 equal ranges."""

    score: float
    """Their mean probability."""
    accuracy: float
    """Share of them whose best class is their label."""
    n: int


@dataclass(frozen=True)
class Mistake:
    """A row that was answered with a class that is not its label, known or not."""

    row: int
    answer: str
    score: float
    """The probability of the answer."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results on n rows. A row is known if the head has its label among its classes."""

    n: int
    n_known: int
    accuracy: float | None
    """Share of the known rows answered with their label; a rejected one is a miss. None if none is known."""
    accuracy_low: float | None
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float | None
    macro_f1: float | None
    """Mean F1 of the classes that occur among the labels."""
    per_class: Mapping[str, ClassReport]
    confusion: NDArray[np.int64]
    """(C + 1, C + 1): true class by answer; the last row is labels the head does not know, the last column
    is "unknown"."""
    ece: float | None
    """Expected calibration error of the best class's probability over the known rows, 15 bins (Guo 2017)."""
    rejection_curve: tuple[tuple[float, float], ...]
    """(coverage, accuracy) when only the least novel share of all rows is answered; an answer to a row whose
    label the head does not know is a miss."""
    false_reject_rate: float | None
    """Share of the known rows answered "unknown"."""
    unknown_accept_rate: float | None
    """Share of the other rows answered with a class; None without such rows."""
    unknown_labels: Mapping[str, int]
    """Labels the head does not know, and their rows."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """What `ece` sums up, in order of score; ranges without rows are left out."""
    rejection_auroc: float | None = None
    """Chance that a row of an unknown label is more novel than a known one, ties counting half (the area under the
    ROC curve, Hanley and McNeil 1982); None unless there are rows of both."""
    mistakes: tuple[Mistake, ...] = ()
    """The surest wrong answers, at most 50; "unknown" is none."""


def evaluate(head: TrainedHead, X: ArrayLike, labels: Sequence[str], *, reject: bool = True) -> Evaluation:
    """Classify vectors (n, d) and compare with their n labels.

    Raises InvalidArgument for vectors or labels that `train` would refuse, and for another dimension.
    """
    probabilities, novelty = head.scores(X)
    labels = check_labels(labels, len(novelty))
    C, number = len(head.classes), {label: i for i, label in enumerate(head.classes)}
    truth = np.array([number.get(label, C) for label in labels], dtype=np.intp)
    best = probabilities.argmax(axis=1)
    answer = np.where(novelty > head.threshold, C, best) if reject else best
    known = truth < C
    n_known, n_other = int(known.sum()), int((~known).sum())
    confusion = np.bincount(truth * (C + 1) + answer, minlength=(C + 1) ** 2).reshape(C + 1, C + 1)
    hits = int(np.trace(confusion[:C, :C]))
    low, high = wilson(hits, n_known)
    reports = _reports(head.classes, confusion)
    present = [report.f1 for report in reports.values() if report.support]
    score = probabilities.max(axis=1)
    reliability = _reliability(score[known], (best == truth)[known])
    others = sorted({label for label in labels if label not in number})
    return Evaluation(
        n=len(labels),
        n_known=n_known,
        accuracy=hits / n_known if n_known else None,
        accuracy_low=low if n_known else None,
        accuracy_high=high if n_known else None,
        macro_f1=float(np.mean(present)) if present else None,
        per_class=reports,
        confusion=confusion,
        ece=sum(part.n * abs(part.score - part.accuracy) for part in reliability) / n_known if n_known else None,
        rejection_curve=_curve(novelty, best == truth),
        false_reject_rate=float((answer[known] == C).mean()) if n_known else None,
        unknown_accept_rate=float((answer[~known] < C).mean()) if n_other else None,
        unknown_labels={label: labels.count(label) for label in others},
        reliability=reliability,
        rejection_auroc=auroc(novelty[known], novelty[~known]) if n_known and n_other else None,
        mistakes=_mistakes(head.classes, truth, answer, score),
    )


def _reports(classes: tuple[str, ...], confusion: NDArray[np.int64]) -> dict[str, ClassReport]:
    hits = np.diagonal(confusion)
    answered, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        label: ClassReport(
            # A class never answered has no precision; 0 is the convention.
            precision=float(hits[i] / answered[i]) if answered[i] else 0.0,
            recall=float(hits[i] / support[i]) if support[i] else 0.0,
            f1=float(2 * hits[i] / (answered[i] + support[i])) if answered[i] + support[i] else 0.0,
            support=int(support[i]),
        )
        for i, label in enumerate(classes)
    }


def _reliability(score: Vector, right: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    number = np.minimum((score * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    counts = np.bincount(number, minlength=ECE_BINS)
    scores, hits = np.bincount(number, score, ECE_BINS), np.bincount(number, right, ECE_BINS)
    return tuple(
        ReliabilityBin(float(scores[i] / counts[i]), float(hits[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts)
    )


def auroc(known: Vector, other: Vector) -> float:
    """Return the chance that one of the others is larger than a known one, ties counting half (Hanley and McNeil)."""
    ordered = np.sort(known)
    below, up_to = (np.searchsorted(ordered, other, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(known)))


def _mistakes(classes: tuple[str, ...], truth: Rows, answer: Rows, score: Vector) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero((answer != truth) & (answer < len(classes)))
    surest = wrong[np.argsort(-score[wrong], kind="stable")][:MOST_MISTAKES]
    return tuple(Mistake(int(row), classes[answer[row]], float(score[row])) for row in surest)


def _curve(novelty: Vector, right: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    n = len(novelty)
    so_far = np.cumsum(right[np.argsort(novelty, kind="stable")])
    counts = np.unique(np.ceil(np.linspace(0, 1, CURVE_POINTS + 1)[1:] * n).astype(np.intp))
    return tuple((float(c / n), float(so_far[c - 1] / c)) for c in counts)
