"""Ridge regression onto one-hot labels: W = (G + λI)⁻¹Q with G = Σxxᵀ and Q = Σxyᵀ, in float64.

The second stage of RanPAC (McDonnell et al., 2023, arXiv:2307.02251). λ is the one of 10^[-8..8] with the
least squared error over all leave-one-out predictions, which have a closed form (PRESS; Allen, 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, holdable
from likewise_server.heads.symmetric import Factor, eigen
from likewise_server.heads.validate import k_fold

if TYPE_CHECKING:
    from likewise_server.heads.base import Floats, Matrix, Problem, Rows, Vector
    from likewise_server.heads.moments import Moments

LAMBDAS = np.logspace(-8, 8, 17)
# Where every class has one row, leaving one out leaves its class out, and tells nothing.
_ONE_SHOT_LAMBDA = 1.0
FOLDS = 5
MAX_FOLDED = 2000
# Below this share of the mean eigenvalue a λ no longer keeps a plain solution from drowning in rounding.
_STABLE = 1e-6
# Relative difference of two losses that single precision gets right.
_TOLD_APART = 1e-3


@dataclass(frozen=True, eq=False)
class _System:
    """(G + λI)W = Q, or by the (n, n) Gram matrix K where there are fewer rows than dimensions: W = Zᵀ(K + λI)⁻¹Y.

    Rows are scaled by the root of their weight beforehand.
    """

    Z: Matrix
    """(r, d), the rows that are left out in turn: all there are, or of sums a sample."""
    y: Rows
    root: Vector
    matrix: Matrix
    """(k, k): G or K, which have the same eigenvalues other than 0."""
    right: Matrix
    """(k, C): Q or Y."""
    tall: bool

    @classmethod
    def of(cls, problem: Problem) -> Self:
        root = np.sqrt(problem.weights)
        Z = problem.Z * root[:, None]
        if Z.shape[0] > Z.shape[1]:
            return cls(Z, problem.y, root, Z.T @ Z, problem.class_sums(Z * root[:, None]).T, tall=True)
        return cls(Z, problem.y, root, Z @ Z.T, problem.one_hot * root[:, None], tall=False)

    @classmethod
    def of_moments(cls, moments: Moments, sample: Problem) -> Self:
        """Of the sums over more rows than there are dimensions."""
        assert moments.gram is not None  # noqa: S101  (KIND asks for it)
        return cls(sample.Z, sample.y, np.ones(len(sample.y)), moments.gram, moments.sums.T, tall=True)

    def coefficients(self, lam: float) -> Matrix:
        """W (d, C)."""
        if not self._stable(lam):
            return self._coefficients(_Path.of(self).solution(lam))
        return self._coefficients(Factor.of(self.matrix, lam).solve(self.right))

    def left_out(self, lam: float) -> tuple[Matrix, Floats]:
        """W (d, C), and y minus its prediction without that row for every row, (r, C)."""
        if not self._stable(lam):
            path = _Path.of(self)
            return self._coefficients(path.solution(lam)), path.residuals(lam)
        factor = Factor.of(self.matrix, lam)
        solved = factor.solve(self.right)
        W = self._coefficients(solved)
        half = factor.half(self.Z.T if self.tall else np.eye(len(self.y)))
        share = np.einsum("kr,kr->r", half, half)
        return W, _left_out(self.Z @ W if self.tall else solved, share, self.y, self.root, tall=self.tall)

    def _coefficients(self, solved: Matrix) -> Matrix:
        return solved if self.tall else np.asarray(self.Z.T @ solved, dtype=np.float64)

    def _stable(self, lam: float) -> bool:
        return lam > _STABLE * float(np.trace(self.matrix)) / len(self.matrix)


@dataclass(frozen=True, eq=False)
class _Path:
    """One eigendecomposition that gives the leave-one-out residuals for every λ, in the precision it was made in."""

    system: _System
    values: Floats
    basis: Floats
    rotated: Floats
    """What does not depend on λ is computed once: the rows in the eigenbasis, their squares, the right side."""
    squares: Floats
    target: Floats

    @classmethod
    def of(cls, system: _System, precision: type[np.floating] = np.float64) -> Self:
        values, basis = eigen(system.matrix, precision)
        rotated = system.Z.astype(precision) @ basis if system.tall else basis
        return cls(system, values, basis, rotated, rotated**2, basis.T @ system.right.astype(precision))

    def solution(self, lam: float) -> Matrix:
        """Return what a Cholesky factor would give, (k, C), however small λ is."""
        return np.asarray(self.basis @ (self._shrink(lam)[:, None] * self.target), dtype=np.float64)

    def residuals(self, lam: float) -> Floats:
        """Return y minus its prediction without that row, (r, C)."""
        shrink, system = self._shrink(lam), self.system
        image, share = self.rotated @ (shrink[:, None] * self.target), self.squares @ shrink
        return _left_out(image, share, system.y, system.root.astype(image.dtype), tall=system.tall)

    def losses(self, lams: Vector, rows: Rows, weights: Vector) -> Vector:
        """Return the squared error over the rows (r,) left out for each λ."""
        errors = (self.residuals(float(lam))[rows] for lam in lams)
        return np.array([weights @ np.einsum("rc,rc->r", error, error) for error in errors])

    def _shrink(self, lam: float) -> Floats:
        return 1 / (self.values + self.values.dtype.type(lam))


def _least(system: _System, rows: Rows, weights: Vector) -> float:
    """Return the λ with the least squared error over the rows (r,) left out, of which each has a weight."""
    if system.tall:  # of few rows the smallest λ matter, and all is quick
        # Single precision takes half the time; those that it cannot tell apart are compared in double.
        lams = LAMBDAS[_STABLE * float(np.trace(system.matrix)) < LAMBDAS]
        rough = _Path.of(system, np.float32).losses(lams, rows, weights)
        close = rough <= rough.min() * (1 + _TOLD_APART)
        if close.sum() == 1 and not close[0]:
            return float(lams[close][0])
    return float(LAMBDAS[np.argmin(_Path.of(system).losses(LAMBDAS, rows, weights))])


def _left_out(image: Floats, share: Floats, y: Rows, root: Floats, *, tall: bool) -> Floats:
    """Turn fitted values into residuals of rows left out, (r, C), writing over `image`.

    Tall: image is ŷ and share h, and the residual (y - ŷ) / (1 - h). Otherwise image is K⁻¹y and share the
    diagonal of K⁻¹: the same quotient with λ cancelled, which stays accurate where h is within rounding of 1.
    """
    if tall:
        np.negative(image, out=image)
        image[np.arange(len(y)), y] += root
        share = np.maximum(1 - share, 1e-12)
    image /= (share * root)[:, None]
    return image


def fit(problem: Problem) -> Fit:
    """Choose λ (unless it is given) and solve."""
    rows, lam, system = holdable(problem), problem.options.lam, _System.of(problem)
    # On few rows the metrics take folds: see held_out.
    if lam is None and len(rows) and len(problem.y) > MAX_FOLDED:
        lam = _least(system, rows, problem.weights[rows])
        W, error = system.left_out(lam)
        return Fit(_linear(W), {"lam": lam}, held_out=_held_out(problem.y, rows, error))
    if lam is None:
        lam = _least(system, rows, problem.weights[rows]) if len(rows) else _ONE_SHOT_LAMBDA
    return Fit(_linear(system.coefficients(lam)), {"lam": lam})


def fit_moments(moments: Moments, sample: Problem) -> Fit:
    """Fit from sums; λ and what is held out go by rows of the sample, each taken out of the sums in turn."""
    system, lam = _System.of_moments(moments, sample), sample.options.lam
    rows = np.flatnonzero(moments.counts[sample.y] >= 2)  # noqa: PLR2004
    if lam is None:
        lam = _least(system, rows, np.ones(len(rows))) if len(rows) else _ONE_SHOT_LAMBDA
    W, error = system.left_out(lam)
    return Fit(_linear(W), {"lam": lam}, held_out=_held_out(sample.y, rows, error))


def _linear(W: Matrix) -> Linear:
    return Linear(W, np.zeros(W.shape[1]))


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
    return fit_and_leave_out(problem)[1]


def fit_and_leave_out(problem: Problem) -> tuple[Linear, HeldOut]:
    """Fit for the λ in the options and, from the same factor, score every row that can be left out."""
    W, error = _System.of(problem).left_out(problem.options.lam or _ONE_SHOT_LAMBDA)
    return _linear(W), _held_out(problem.y, holdable(problem), error)


def _held_out(y: Rows, rows: Rows, error: Floats) -> HeldOut:
    """Return the logits that belong to the residuals, (r, C), of the rows that can be left out."""
    logits = -np.asarray(error[rows], dtype=np.float64)
    logits[np.arange(len(rows)), y[rows]] += 1.0
    return HeldOut(logits, rows, len(rows), "leave-one-out")


KIND = Kind(
    "ridge",
    ("center", "lam", "class_weight"),
    fit,
    held_out,
    Linear.restore,
    one_shot_temperature=0.025,
    fit_moments=fit_moments,
    updatable=True,
)
