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
    from likewise_server.heads.moments import Moments

LAMBDAS = np.logspace(-8, 8, 17)
# Where every class has one row, leaving one out leaves its class out, and tells nothing.
_ONE_SHOT_LAMBDA = 1.0
FOLDS = 5
MAX_FOLDED = 2000
# Below this share of the mean eigenvalue a λ no longer keeps a plain solution from drowning in rounding.
_STABLE = 1e-6


@dataclass(frozen=True, eq=False)
class _Path:
    """One eigendecomposition that gives W and the leave-one-out residuals for every λ.

    Of G where there are more rows than dimensions, otherwise of the (n, n) Gram matrix, which has the same
    eigenvalues other than 0. Rows are scaled by the root of their weight beforehand.
    """

    Z: Matrix
    y: Rows
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
        Z, root = _scaled(problem)
        tall = Z.shape[0] > Z.shape[1]
        values, basis = np.linalg.eigh(Z.T @ Z if tall else Z @ Z.T)
        rotated = Z @ basis if tall else basis
        target = problem.class_sums(rotated * root[:, None]).T
        return cls(Z, problem.y, root, np.maximum(values, 0.0), basis, rotated, rotated**2, target, tall)

    @classmethod
    def of_moments(cls, moments: Moments, sample: Problem) -> Self:
        """Of the sums over more rows than there are dimensions; the residuals are those of the sample's rows."""
        assert moments.gram is not None  # noqa: S101  (KIND asks for it)
        values, basis = np.linalg.eigh(moments.gram)
        rotated, target, root = sample.Z @ basis, (moments.sums @ basis).T, np.ones(len(sample.y))
        return cls(sample.Z, sample.y, root, np.maximum(values, 0.0), basis, rotated, rotated**2, target, tall=True)

    def coefficients(self, lam: float) -> Matrix:
        """W, (d, C)."""
        shrink = 1 / (self.values + lam)
        rotated = self.basis @ (shrink[:, None] * self.target)
        return np.asarray(rotated if self.tall else self.Z.T @ rotated, dtype=np.float64)

    def residuals(self, lam: float) -> Matrix:
        """Return y minus its prediction without that row, (n, C)."""
        shrink = 1 / (self.values + lam)
        image, share = self.rotated @ (shrink[:, None] * self.target), self.squares @ shrink
        return _left_out(image, share, self.y, self.root, tall=self.tall)

    def search(self, rows: Rows, weights: Vector) -> tuple[float, Matrix]:
        """Return the λ with the least squared error over the rows (r,) left out, and those residuals (r, C)."""
        least, best, kept = np.inf, _ONE_SHOT_LAMBDA, None
        for lam in LAMBDAS:
            error = self.residuals(float(lam))[rows]
            loss = float(weights @ np.einsum("rc,rc->r", error, error))
            if loss < least:
                least, best, kept = loss, float(lam), error
        assert kept is not None  # noqa: S101  (the squared errors of finite rows are finite)
        return best, kept


def _scaled(problem: Problem) -> tuple[Matrix, Vector]:
    root = np.sqrt(problem.weights)
    return problem.Z * root[:, None], root


def _left_out(image: Matrix, share: Vector, y: Rows, root: Vector, *, tall: bool) -> Matrix:
    """Turn fitted values into residuals of rows left out, (n, C), writing over `image`.

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
    rows, lam = holdable(problem), problem.options.lam
    if lam is None and not len(rows):
        lam = _ONE_SHOT_LAMBDA
    if lam is not None:
        return Fit(Linear(_coefficients(problem, lam), np.zeros(problem.n_classes)), {"lam": lam})
    path = _Path.of(problem)
    lam, error = path.search(rows, problem.weights[rows])
    linear = Linear(path.coefficients(lam), np.zeros(problem.n_classes))
    # On few rows the metrics take folds instead: see held_out.
    return Fit(linear, {"lam": lam}, held_out=_held_out(problem, rows, error) if len(problem.y) > MAX_FOLDED else None)


def fit_moments(moments: Moments, sample: Problem) -> Fit:
    """Fit from sums; λ and what is held out go by rows of the sample, each taken out of the sums in turn."""
    path, lam = _Path.of_moments(moments, sample), sample.options.lam
    rows = np.flatnonzero(moments.counts[sample.y] >= 2)  # noqa: PLR2004
    if not len(rows):
        lam = lam or _ONE_SHOT_LAMBDA
    if lam is None:
        lam, error = path.search(rows, np.ones(len(rows)))
    else:
        error = path.residuals(lam)[rows]
    linear = Linear(path.coefficients(lam), np.zeros(sample.n_classes))
    return Fit(linear, {"lam": lam}, held_out=_held_out(sample, rows, error))


def _stable(system: Matrix, lam: float) -> bool:
    return lam > _STABLE * float(np.trace(system)) / len(system)


def _coefficients(problem: Problem, lam: float) -> Matrix:
    """W (d, C) for one λ: an eighth of the work of all, which is what counts in folds."""
    Z, root = _scaled(problem)
    tall = Z.shape[0] > Z.shape[1]
    system = Z.T @ Z if tall else Z @ Z.T
    if not _stable(system, lam):
        return _Path.of(problem).coefficients(lam)
    system[np.diag_indices(len(system))] += lam
    if tall:
        return np.asarray(np.linalg.solve(system, problem.class_sums(Z * root[:, None]).T), dtype=np.float64)
    return np.asarray(Z.T @ np.linalg.solve(system, problem.one_hot * root[:, None]), dtype=np.float64)


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
    """Fit for the λ in the options and, from the same inverse, score every row that can be left out."""
    rows, lam = holdable(problem), problem.options.lam or _ONE_SHOT_LAMBDA
    Z, root = _scaled(problem)
    tall = Z.shape[0] > Z.shape[1]
    system = Z.T @ Z if tall else Z @ Z.T
    if _stable(system, lam):
        system[np.diag_indices(len(system))] += lam
        inverse = np.linalg.inv(system)
        if tall:
            W = inverse @ problem.class_sums(Z * root[:, None]).T
            image, share = Z @ W, np.einsum("nd,nd->n", Z @ inverse, Z)
        else:
            image, share = problem.class_sums(inverse * root[:, None]).T, np.diag(inverse)
            W = Z.T @ image
        error = _left_out(image, share, problem.y, root, tall=tall)
    else:
        path = _Path.of(problem)
        W, error = path.coefficients(lam), path.residuals(lam)
    return Linear(W, np.zeros(problem.n_classes)), _held_out(problem, rows, error[rows])


def _held_out(problem: Problem, rows: Rows, error: Matrix) -> HeldOut:
    logits = -error
    logits[np.arange(len(rows)), problem.y[rows]] += 1.0
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
