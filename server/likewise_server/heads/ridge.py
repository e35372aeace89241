"""Ridge regression onto one-hot labels: W = (G + λI)⁻¹Q with G = Σxxᵀ and Q = Σxyᵀ, in float64.

The second stage of RanPAC (McDonnell et al., 2023, arXiv:2307.02251). λ is the one of 10^[-8..8] with the
least squared error over all leave-one-out predictions, which have a closed form (PRESS; Allen, 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, holdable
from likewise_server.heads.validate import k_fold

if TYPE_CHECKING:
    from likewise_server.heads.base import Matrix, Problem, Rows, Vector

LAMBDAS = np.logspace(-8, 8, 17)
# Where every class has one row, leaving one out leaves its class out, and tells nothing.
_ONE_SHOT_LAMBDA = 1.0
FOLDS = 5
MAX_FOLDED = 2000


@dataclass(frozen=True, eq=False)
class _Path:
    """One eigendecomposition that gives W and the leave-one-out residuals for every λ.

    Of G where there are more rows than dimensions, otherwise of the (n, n) Gram matrix, which has the same
    eigenvalues other than 0. Rows are scaled by the root of their weight beforehand.
    """

    Z: Matrix
    Y: Matrix
    root: Vector
    values: Vector
    basis: Matrix
    rotated: Matrix
    """What does not depend on λ is computed once: the rows in the eigenbasis, their squares, their target."""
    squares: Matrix
    target: Matrix
    tall: bool

    @classmethod
    def of(cls, problem: Problem) -> Self:
        root = np.sqrt(problem.weights)
        Z, Y = problem.Z * root[:, None], problem.one_hot * root[:, None]
        tall = Z.shape[0] > Z.shape[1]
        values, basis = np.linalg.eigh(Z.T @ Z if tall else Z @ Z.T)
        rotated = Z @ basis if tall else basis
        return cls(Z, Y, root, np.maximum(values, 0.0), basis, rotated, rotated**2, rotated.T @ Y, tall)

    def coefficients(self, lam: float) -> Matrix:
        """W, (d, C)."""
        shrink = 1 / (self.values + lam)
        rotated = self.basis @ (shrink[:, None] * self.target)
        return np.asarray(rotated if self.tall else self.Z.T @ rotated, dtype=np.float64)

    def residuals(self, lam: float) -> Matrix:
        """Return y minus its prediction without that row, (n, C)."""
        shrink = 1 / (self.values + lam)
        share = self.squares @ shrink
        image = self.rotated @ (shrink[:, None] * self.target)
        # Tall: (y - ŷ) / (1 - h). Otherwise the same quotient with λ cancelled, which stays accurate where
        # h is within rounding of 1.
        top = self.Y - image if self.tall else image
        bottom = np.maximum(1 - share, 1e-12) if self.tall else share
        return np.asarray(top / (bottom * self.root)[:, None], dtype=np.float64)


def fit(problem: Problem) -> Fit:
    """Choose λ (unless it is given) and solve."""
    path, rows, lam = _Path.of(problem), holdable(problem), problem.options.lam
    held = None
    if lam is None and not len(rows):
        lam = _ONE_SHOT_LAMBDA
    elif lam is None:
        weights = problem.weights[rows]
        least = np.inf
        for candidate in LAMBDAS:
            error = path.residuals(float(candidate))[rows]
            loss = float(weights @ (error**2).sum(axis=1))
            if loss < least:
                least, lam, held = loss, float(candidate), _held_out(problem, rows, error)
    assert lam is not None  # noqa: S101  (the squared errors of finite rows are finite)
    linear = Linear(path.coefficients(lam), np.zeros(problem.n_classes))
    # On few rows the metrics take folds instead: see held_out.
    return Fit(linear, {"lam": lam}, held_out=held if len(problem.y) > MAX_FOLDED else None)


def held_out(problem: Problem) -> HeldOut:
    """Out-of-fold logits for the λ in the options; leave-one-out where folds would cost too much.

    Leaving one row out also makes its class rarer than the others: with five rows a class the accuracy so
    measured was 5 points below that on fresh rows. Folds are weighed up to the proportions of the whole.
    """
    if len(problem.y) <= MAX_FOLDED:
        return k_fold(KIND, problem, FOLDS)
    return leave_one_out(problem)


def leave_one_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits in closed form for the λ in the options."""
    rows, lam = holdable(problem), problem.options.lam or _ONE_SHOT_LAMBDA
    return _held_out(problem, rows, _Path.of(problem).residuals(lam)[rows])


def _held_out(problem: Problem, rows: Rows, error: Matrix) -> HeldOut:
    return HeldOut(problem.one_hot[rows] - error, rows, len(rows), "leave-one-out")


KIND = Kind("ridge", ("center", "lam", "class_weight"), fit, held_out, Linear.restore, one_shot_temperature=0.025)
