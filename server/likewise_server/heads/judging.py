"""What heads say of labelled examples that they were not trained on: the ground of every doubt about a label.

Each example is scored by a head that was fitted without its fold. A label is doubtful by the rule of confident
learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068): its probability lies under what is typical of that
class, and another class reaches what is typical of that one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads import registry
from likewise_server.heads.base import HeldOut, Problem, unit_rows
from likewise_server.heads.calibration import fit_temperature, probabilities
from likewise_server.heads.inputs import check_labels, check_vectors
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.validate import fold_numbers, stratified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Rows, Vector
    from likewise_server.heads.head import TrainedHead

FOLDS = 5
MOST_FITTED = 10_000
"""Examples that one fold's head is fitted on: more of them cost minutes, and change few answers."""
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Judged:
    """Out-of-fold answers to n labelled examples. Rows outside `rows` could not be judged and hold zeros."""

    classes: tuple[str, ...]
    y: Rows
    """The class numbers of the labels, (n,)."""
    probabilities: NDArray[np.float32]
    """Calibrated, (n, C), without the prior that the head may have."""
    rows: Rows
    """The examples that were judged: those whose class has another one."""

    @property
    def own(self) -> Vector:
        """The probabilities of the labels they have, (n,)."""
        return np.asarray(self.probabilities[np.arange(len(self.y)), self.y], dtype=np.float64)

    @property
    def answers(self) -> Rows:
        """The likeliest classes, (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.intp)


def judge(head: TrainedHead, vectors: ArrayLike, labels: Sequence[str]) -> Judged:
    """Judge the labels (n,) of the vectors (n, d) that a head was trained on, by heads of its kind and options.

    Raises InvalidArgument for vectors or labels that `train` would refuse, and for labels that the head does not know.
    """
    X = check_vectors(vectors, dim=head.dim)
    labels = check_labels(labels, len(X))
    if unknown := sorted(set(labels) - set(head.classes)):
        raise InvalidArgument(f"label {unknown[0]!r} is none that the head knows: judge what it was trained on")
    number = {label: i for i, label in enumerate(head.classes)}
    y = np.array([number[label] for label in labels], dtype=np.intp)
    settings = HeadOptions(**head.options)  # type: ignore[arg-type]  # they come from HeadOptions.given()
    problem = Problem(unit_rows(X, head.mean), y, len(head.classes), settings).fixing(head.chosen)
    fold = fold_numbers(y, FOLDS, settings.seed)
    logits = np.zeros((len(y), problem.n_classes), dtype=np.float32)
    for number_of_fold in range(FOLDS if problem.n_classes > 1 else 0):
        outside = np.flatnonzero(fold == number_of_fold)
        if len(outside):
            _score(head.kind, problem, np.flatnonzero(fold != number_of_fold), outside, logits)
    rows = np.flatnonzero(fold >= 0) if problem.n_classes > 1 else np.empty(0, dtype=np.intp)
    shares = np.zeros_like(logits)
    if len(rows):
        held = HeldOut(logits[rows].astype(np.float64), rows, FOLDS, "")
        temperature = fit_temperature(held, y[rows])
        shares[rows] = probabilities(held.logits, temperature, np.zeros(problem.n_classes))
    return Judged(head.classes, y, shares, rows)


def _score(kind: str, problem: Problem, inside: Rows, outside: Rows, into: NDArray[np.float32]) -> None:
    """Fit on some rows and write the logits of others."""
    fitted = stratified(problem.y, inside, MOST_FITTED, problem.options.seed)
    part = replace(problem.take(fitted), totals=problem.counts)
    scorer = registry.load(kind).fit(part).scorer
    for start in range(0, len(outside), _CHUNK):
        rows = outside[start : start + _CHUNK]
        into[rows] = scorer.logits(problem.Z[rows], problem.Z[rows] @ part.Z.T)


@dataclass(frozen=True)
class Doubt:
    """A row whose label looks wrong, and the class number that looks right."""

    row: int
    suggested: int


def doubts(judged: Judged) -> list[Doubt]:
    """Return the rows whose labels look wrong, the surest first."""
    rows, own = judged.rows, judged.own
    totals = np.bincount(judged.y[rows], own[rows], len(judged.classes))
    counts = np.bincount(judged.y[rows], minlength=len(judged.classes))
    # A class without a judged example has nothing typical, and is not suggested.
    typical = np.where(counts > 0, totals / np.maximum(counts, 1), np.inf)
    found = list[tuple[float, Doubt]]()
    for row in rows[own[rows] < typical[judged.y[rows]]]:
        shares = judged.probabilities[row].astype(np.float64)
        reached = np.where(shares >= typical, shares, -1.0)
        reached[judged.y[row]] = -1.0
        best = int(reached.argmax())
        if reached[best] > own[row]:
            found.append((float(own[row] - reached[best]), Doubt(int(row), best)))
    return [doubt for _, doubt in sorted(found, key=lambda pair: (pair[0], pair[1].row))]


@dataclass(frozen=True)
class Confusion:
    """How often one class is taken for another: `rows` of them, the `share` of its judged examples."""

    label: int
    taken_for: int
    rows: int
    share: float


def confusions(judged: Judged) -> list[Confusion]:
    """Return the classes that are taken for each other, the most frequent mistakes first."""
    C, rows = len(judged.classes), judged.rows
    cells, counts = np.unique(judged.y[rows] * C + judged.answers[rows], return_counts=True)
    sizes = np.bincount(judged.y[rows], minlength=C)
    found = [
        Confusion(int(cell) // C, int(cell) % C, int(count), float(count / sizes[cell // C]))
        for cell, count in zip(cells, counts, strict=True)
        if cell // C != cell % C
    ]
    return sorted(found, key=lambda each: (-each.rows, -each.share, each.label, each.taken_for))
