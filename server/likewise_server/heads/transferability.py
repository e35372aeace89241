"""How well frozen vectors would tell classes apart, without training on the network: for choosing a backbone.

Leave-one-out accuracies of two heads, kNN and ridge, and two scores without held-out rows:

LogME (You et al., "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021,
arXiv:2102.11005): the log evidence of a Bayesian linear model of each class's membership, its two variances at their
best, averaged over rows and classes.

The regularised H-score (Ibrahim et al., "Newer is not always better: rethinking transferability metrics, their
peculiarities, stability and performance", ECML 2022, arXiv:2110.06893): the share of the features' variance that lies
between classes, in the metric of a covariance shrunk as by Ledoit and Wolf (2004). Without that, it is C - 1 for any
features at all once there are fewer rows than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads import knn, ridge
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.inputs import check_labels, check_vectors
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.validate import MAX_HELD_OUT, stratified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import HeldOut, Matrix, Rows, Vector

MOST_ROWS = MAX_HELD_OUT
# Ratio of the model's variances, in units of the rows' mean variance. Labels that features explain without a rest have
# ever more evidence as it goes to 0: it stops here.
_LEAST, _LARGEST = 1e-6, 1e6
_POINTS, _ROUNDS = 25, 4


@dataclass(frozen=True, eq=False)
class Transferability:
    """What vectors are worth for some labels; `knn_right` and `ridge_right` are (m,), one for each measured row."""

    rows: Rows
    knn_right: NDArray[np.bool_]
    ridge_right: NDArray[np.bool_]
    log_me: float
    h_score: float

    @property
    def right(self) -> Vector:
        """How right the two heads were on each row, (m,): 0, 0.5 or 1. Their mean is what ranks."""
        return np.asarray((self.knn_right.astype(np.float64) + self.ridge_right) / 2)


def measurable(labels: Sequence[str]) -> Rows:
    """Return which rows can be left out, at most about MOST_ROWS of them: those whose class has another one.

    Raises InvalidArgument unless they are of two classes.
    """
    classes, y = np.unique(np.asarray(labels, dtype=object), return_inverse=True)
    rows = np.flatnonzero(np.bincount(y, minlength=len(classes))[y] >= 2)  # noqa: PLR2004  # it and another
    if len(set(y[rows].tolist())) < 2:  # noqa: PLR2004  # to tell apart
        raise InvalidArgument("backbones are compared on two classes or more with two items each: give more of them")
    return stratified(y, rows, MOST_ROWS, seed=0)


def transferability(vectors: ArrayLike, labels: Sequence[str]) -> Transferability:
    """Measure vectors (n, d) of any length but zero with n labels, of which two classes have two or more.

    Rows whose class has no other are there for others to be told from, and are not measured. Raises InvalidArgument
    for vectors or labels that `train` would refuse, and for too few of them.
    """
    X = check_vectors(vectors)
    labels = check_labels(labels, len(X))
    measurable(labels)
    classes = sorted(set(labels))
    number = {label: i for i, label in enumerate(classes)}
    y = np.array([number[label] for label in labels], dtype=np.intp)
    problem = Problem(unit_rows(X), y, len(classes), HeadOptions())
    near = knn.held_out(problem)
    linear = ridge.leave_one_out(problem.fixing(ridge.fit(problem).chosen))
    # On many rows either leaves out a part of them; both parts are drawn alike.
    rows = np.intersect1d(near.rows, linear.rows)
    return Transferability(
        rows, _right(near, rows, y), _right(linear, rows, y), log_me(problem.Z, y), regularised_h_score(problem.Z, y)
    )


def log_me(X: Matrix, y: Rows) -> float:
    """Return LogME of rows X (n, d) and class numbers y (n,): larger is better; scaling X does not change it.

    The evidence of weights N(0, I/a) and noise N(0, I/b) depends on X by its singular values only. Given the ratio
    a/b the best b is in closed form, so one number is searched for each class, over all its range: the paper's
    iteration ends at the same place, or at another where there are several.
    """
    n = len(X)
    squares, left = _spectrum(X)
    projected = _class_sums(left, y).T ** 2  # (r, C), what each class's 0 and 1 have along each direction
    counts = np.bincount(y)
    present = counts > 0
    projected, counts = projected[:, present], counts[present]
    rest = np.maximum(counts - projected.sum(axis=0), 0.0)

    def evidence(ratio: Vector) -> Vector:
        shrunk = squares[:, None] / ratio
        error = np.maximum((projected / (1 + shrunk)).sum(axis=0) + rest, n * np.finfo(np.float64).tiny)
        best: Vector = -(n * (np.log(2 * np.pi * error / n) + 1) + np.log1p(shrunk).sum(axis=0)) / (2 * n)
        return best

    middle = squares.sum() / max(len(squares), 1)
    low = np.full(len(counts), np.log(_LEAST * middle))
    high = np.full(len(counts), np.log(_LARGEST * middle))
    for _ in range(_ROUNDS):
        places = np.linspace(low, high, _POINTS)
        best = np.argmax([evidence(np.exp(place)) for place in places], axis=0)
        low = np.take_along_axis(places, np.maximum(best - 1, 0)[None], axis=0)[0]
        high = np.take_along_axis(places, np.minimum(best + 1, _POINTS - 1)[None], axis=0)[0]
    return float(evidence(np.exp((low + high) / 2)).mean())


def regularised_h_score(X: Matrix, y: Rows) -> float:
    """Return the H-score of rows X (n, d) and class numbers y (n,) with a shrunk covariance, 0 to C - 1.

    tr(Σ⁻¹ (1 - a) B), Σ = (1 - a) S + a tr(S)/d I with the covariance S, B the covariance of the rows' class means and
    a as Ledoit and Wolf have it. In the rows' span, so that few rows of many dimensions cost little.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415  # takes a second to import

    centred = X - X.mean(axis=0)
    n, d = centred.shape
    squares, left = _spectrum(centred)
    if not len(squares):
        return 0.0  # all rows are the same
    share = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    variances = squares / n
    shrunk = (1 - share) * variances + share * variances.sum() / d
    counts = np.bincount(y)[:, None]
    between = (_class_sums(left, y) ** 2 / np.maximum(counts, 1)).sum(axis=0)  # of each direction, 0 to 1
    return float((1 - share) * (variances / shrunk * between).sum())


def _right(held: HeldOut, rows: Rows, y: Rows) -> NDArray[np.bool_]:
    places = np.searchsorted(held.rows, rows)
    return np.asarray(held.logits[places].argmax(axis=1) == y[rows])


def _class_sums(rows: Matrix, y: Rows) -> Matrix:
    sums = np.zeros((int(y.max()) + 1, rows.shape[1]))
    np.add.at(sums, y, rows)
    return sums


def _spectrum(X: Matrix) -> tuple[Vector, Matrix]:
    """Return the squared singular values of X (n, d) that are not 0, (r,), and its left singular vectors, (n, r)."""
    n, d = X.shape
    wide = n <= d
    values, basis = np.linalg.eigh(X @ X.T if wide else X.T @ X)
    kept = values > values.max(initial=0.0) * max(n, d) * np.finfo(np.float64).eps
    values, basis = values[kept], basis[:, kept]
    return values, basis if wide else np.asarray(X @ basis / np.sqrt(values))
