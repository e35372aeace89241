"""Linear discriminant analysis: class means, compared by the covariance that all classes share.

Σ⁻¹ = D·[A + tr(A)/(n-1)·I]⁻¹ with A the scatter of the rows about their class means (n-1 times the pooled
covariance), w_c = Σ⁻¹μ_c and b_c = -½μ_cᵀΣ⁻¹μ_c: the shrinkage of Kubokawa and Srivastava (2008) as in GDA (Wang et
al., 2024, arXiv:2402.04087). The factor is left to the temperature: here Σ⁻¹ is scaled to have no eigenvalue over 1,
so that it becomes I as A vanishes. Where no class has two different rows, A is nothing and lda answers as ncm does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, in_span
from likewise_server.heads.moments import Moments
from likewise_server.heads.validate import MAX_LEFT_OUT, k_fold, stratified

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.heads.base import Matrix, Problem, Rows, Vector

FOLDS = 5
# A mean squared distance to the class mean that rounding explains: the rows of a class are all the same.
_NO_SCATTER = 1e-12


def fit(problem: Problem) -> Fit:
    """Solve for the class means; in the span of the rows where those are fewer than the dimensions."""
    weights = problem.weights
    means = problem.class_sums(problem.Z) / problem.counts[:, None]
    R = (problem.Z - means[problem.y]) * np.sqrt(weights)[:, None]
    n, d = R.shape
    if n >= d:
        return Fit(_linear(R.T @ R, means, n))
    gram = R @ R.T
    ridge = _ridge(float(np.trace(gram)), n)
    if ridge is None:
        return Fit(_discriminant(means, means))
    # Woodbury's identity: ε(RᵀR + εI)⁻¹M = M - Rᵀ(RRᵀ + εI)⁻¹RM.
    gram[np.diag_indices(n)] += ridge
    return Fit(_discriminant(means, means - np.linalg.solve(gram, R @ means.T).T @ R))


def fit_moments(moments: Moments, sample: Problem) -> Fit:
    """Fit from sums; what is held out are rows of the sample, each taken out of the sums in turn."""
    A, means = _scatter(moments)
    return Fit(_linear(A, means, int(moments.counts.sum())), held_out=_leave_one_out(A, moments, sample))


def _scatter(moments: Moments) -> tuple[Matrix, Matrix]:
    """Return A (d, d) and the class means (C, d)."""
    assert moments.gram is not None  # noqa: S101  (KIND asks for it)
    means = moments.sums / moments.counts[:, None]
    return moments.gram - moments.sums.T @ means, means


def _linear(A: Matrix, means: Matrix, n: int) -> Linear:
    ridge = _ridge(float(np.trace(A)), n)
    if ridge is None:
        return _discriminant(means, means)
    A = A / ridge
    A[np.diag_indices(len(A))] += 1.0
    return _discriminant(means, np.linalg.solve(A, means.T).T)


def _ridge(trace: float, n: int) -> float | None:
    """ε, or None where there is no scatter to speak of."""
    return None if trace <= _NO_SCATTER * n else trace / (n - 1)


def _discriminant(means: Matrix, solved: NDArray[np.floating]) -> Linear:
    return Linear(np.asarray(solved.T, dtype=np.float64), -np.einsum("cd,cd->c", means, solved) / 2)


@dataclass(frozen=True, eq=False)
class _Left:
    """What leaving out each of r rows does, in the eigenbasis of A: the row, what A loses, and by how much."""

    Z: Matrix
    """(r, k) the rows."""
    R: Matrix
    """(r, k) a row less its class's mean."""
    factor: Vector
    """(r,): A loses factor·rrᵀ, n_c/(n_c-1)."""
    ridge: Vector
    """(r,): ε of what is left."""


def held_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits; out-of-fold ones where rows have weights, and where they are few."""
    # Of a few rows a class, one left out moves its own mean and no other, which makes the class look worse than it is.
    if np.median(problem.counts) < FOLDS or not np.allclose(problem.weights, 1.0):
        return k_fold(KIND, problem, FOLDS)
    return leave_one_out(problem)


def leave_one_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits in closed form, for rows of equal weight."""
    compact, _ = in_span(problem)
    moments = Moments.of(compact, gram=True)
    return _leave_one_out(_scatter(moments)[0], moments, compact)


def _leave_one_out(A: Matrix, moments: Moments, sample: Problem) -> HeldOut:
    """Score rows of the sample with themselves taken out of the sums.

    Without row x of class c, A loses n_c/(n_c-1)·rrᵀ with r = x - μ_c, ε changes with its trace, and only μ_c
    moves. In the eigenbasis of A another ε costs nothing, and rrᵀ goes by the Sherman-Morrison formula.
    """
    n, counts = int(moments.counts.sum()), moments.counts
    rows = np.flatnonzero(counts[sample.y] >= 2)  # noqa: PLR2004
    rows = stratified(sample.y, rows, MAX_LEFT_OUT, sample.options.seed)
    Z, y, means = sample.Z[rows], sample.y[rows], moments.sums / counts[:, None]
    factor = counts[y] / (counts[y] - 1.0)
    R = Z - means[y]
    trace = np.trace(A) - factor * np.einsum("rk,rk->r", R, R)
    some = trace > _NO_SCATTER * (n - 1)
    logits = np.empty((len(rows), len(means)))
    if some.any():
        values, basis = np.linalg.eigh(A)
        left = _Left(Z[some] @ basis, R[some] @ basis, factor[some], trace[some] / max(n - 2, 1))
        logits[some] = _without(left, np.maximum(values, 0.0), means @ basis, y[some])
    if not some.all():
        logits[~some] = _without_scatter(Z[~some], R[~some], factor[~some], means, y[~some])
    return HeldOut(logits, rows, len(rows), "leave-one-out")


def _without(left: _Left, values: Vector, means: Matrix, y: Rows) -> Matrix:
    own = np.arange(len(y))
    # P = ε(Λ + εI)⁻¹ before the correction by v: xᵀPm, mᵀPm and vᵀm for every row and class, as matrix products.
    P = left.ridge[:, None] / (values + left.ridge[:, None])
    v = left.R * P
    gain = left.factor / (left.ridge - left.factor * np.einsum("rk,rk->r", left.R, v))
    xPm, mPm, vm = (left.Z * P) @ means.T, P @ (means**2).T, v @ means.T
    # The own class's mean moves away from the row by (factor - 1)·r.
    moved = means[y] - (left.factor - 1)[:, None] * left.R
    xPm[own, y] = np.einsum("rk,rk,rk->r", left.Z, P, moved)
    mPm[own, y] = np.einsum("rk,rk,rk->r", moved, P, moved)
    vm[own, y] = np.einsum("rk,rk->r", v, moved)
    vx = np.einsum("rk,rk->r", v, left.Z)
    return np.asarray(xPm + (gain * vx)[:, None] * vm - (mPm + gain[:, None] * vm**2) / 2)


def _without_scatter(Z: Matrix, R: Matrix, factor: Vector, means: Matrix, y: Rows) -> Matrix:
    logits = np.asarray(Z @ means.T - np.einsum("ck,ck->c", means, means) / 2, dtype=np.float64)
    moved = means[y] - (factor - 1)[:, None] * R
    logits[np.arange(len(y)), y] = np.einsum("rk,rk->r", Z - moved / 2, moved)
    return logits


KIND = Kind(
    "lda",
    ("center", "class_weight"),
    fit,
    held_out,
    Linear.restore,
    one_shot_temperature=0.04,
    fit_moments=fit_moments,
    updatable=True,
)
