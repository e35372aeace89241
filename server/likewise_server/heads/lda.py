"""Linear discriminant analysis: class means, compared by the covariance that all classes share.

Σ⁻¹ = D·[A + s·tr(A)/(n-1)·I]⁻¹ with A the scatter of the rows about their class means (n-1 times the pooled
covariance), w_c = Σ⁻¹μ_c and b_c = -½μ_cᵀΣ⁻¹μ_c. With s = 1 that is the shrinkage of Kubokawa and Srivastava (2008) as
in GDA (Wang et al., 2024, arXiv:2402.04087); with much more of it lda answers as ncm does. From five rows a class on s
is the power of 4 that serves rows left out best (docs/heads.md). The factor is left to the temperature: here Σ⁻¹ is
scaled to have no eigenvalue over 1, so that it becomes I as A vanishes. Where no class has two different rows, A is
nothing and lda answers as ncm does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, in_span
from likewise_server.heads.calibration import fit_temperature, probabilities
from likewise_server.heads.moments import Moments
from likewise_server.heads.symmetric import Factor, eigen
from likewise_server.heads.validate import MAX_LEFT_OUT, k_fold, stratified

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.heads.base import Floats, Matrix, Problem, Rows

FOLDS = 5
# Values of s, and what each step away from 1 must gain, in nats of all rows together: with few rows the least loss goes
# by chance, and 1 is what does best over all.
SHRINKAGES = 4.0 ** np.arange(-3, 4)
STEP_NATS = 1.0
# Rows left out to choose by: more change the choice no more.
MAX_CHOOSING = 500
# With more rows than this, single precision: what it is for needs three digits, and it takes half the time.
_LARGE = 500
# A mean squared distance to the class mean that rounding explains: the rows of a class are all the same.
_NO_SCATTER = 1e-12


def fit(problem: Problem) -> Fit:
    """Choose s (unless it is given) and solve for the class means; in the rows' span where they are few."""
    s = problem.options.shrinkage
    if s is None and _choosable(problem.counts) and np.allclose(problem.weights, 1.0):
        compact, basis = in_span(problem)
        moments = Moments.of(compact, gram=True)
        large = len(compact.Z) > _LARGE
        left = _LeftOut.of(moments, compact, np.float32 if large else np.float64)
        s = left.choose(problem.options.seed)
        linear = _solved(problem, s) if basis is not None else _linear(*_scatter(moments), len(problem.y), s)
        return Fit(linear, {"shrinkage": s}, held_out=left.held_out(s))
    s = 1.0 if s is None else s
    return Fit(_solved(problem, s), {"shrinkage": s})


def _solved(problem: Problem, s: float) -> Linear:
    means = problem.class_sums(problem.Z) / problem.counts[:, None]
    R = (problem.Z - means[problem.y]) * np.sqrt(problem.weights)[:, None]
    n, d = R.shape
    if n >= d:
        return _linear(R.T @ R, means, n, s)
    gram = R @ R.T
    ridge = _ridge(float(np.trace(gram)), n, s)
    if ridge is None:
        return _discriminant(means, means)
    # Woodbury's identity: ε(RᵀR + εI)⁻¹M = M - Rᵀ(RRᵀ + εI)⁻¹RM.
    return _discriminant(means, means - Factor.of(gram, ridge).solve(R @ means.T).T @ R)


def fit_moments(moments: Moments, sample: Problem) -> Fit:
    """Fit from sums; what is held out are rows of the sample, each taken out of the sums in turn."""
    left, s = _LeftOut.of(moments, sample), sample.options.shrinkage
    if s is None:
        s = left.choose(sample.options.seed) if _choosable(moments.counts) else 1.0
    A, means = _scatter(moments)
    return Fit(_linear(A, means, int(moments.counts.sum()), s), {"shrinkage": s}, held_out=left.held_out(s))


def _choosable(counts: Rows) -> bool:
    return len(counts) > 1 and bool(np.median(counts) >= FOLDS)


def _scatter(moments: Moments) -> tuple[Matrix, Matrix]:
    """Return A (d, d) and the class means (C, d)."""
    assert moments.gram is not None  # noqa: S101  (KIND asks for it)
    means = moments.sums / moments.counts[:, None]
    return moments.gram - moments.sums.T @ means, means


def _linear(A: Matrix, means: Matrix, n: int, s: float) -> Linear:
    ridge = _ridge(float(np.trace(A)), n, s)
    if ridge is None:
        return _discriminant(means, means)
    return _discriminant(means, Factor.of(A / ridge, 1.0).solve(means.T).T)


def _ridge(trace: float, n: int, s: float) -> float | None:
    """ε, or None where there is no scatter to speak of."""
    return None if trace <= _NO_SCATTER * n else s * trace / (n - 1)


def _discriminant(means: Matrix, solved: NDArray[np.floating]) -> Linear:
    return Linear(np.asarray(solved.T, dtype=np.float64), -np.einsum("cd,cd->c", means, solved) / 2)


def held_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits; out-of-fold ones where rows have weights, and where they are few."""
    # Of a few rows a class, one left out moves its own mean and no other, which makes the class look worse than it is.
    if np.median(problem.counts) < FOLDS or not np.allclose(problem.weights, 1.0):
        return k_fold(KIND, problem.fixing({"shrinkage": problem.options.shrinkage or 1.0}), FOLDS)
    return leave_one_out(problem)


def leave_one_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits in closed form, for rows of equal weight; s is 1 unless it is given."""
    compact, _ = in_span(problem)
    return _LeftOut.of(Moments.of(compact, gram=True), compact).held_out(problem.options.shrinkage or 1.0)


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """r of n rows, of k dimensions, to be scored as if each had not been there, for any s.

    Without row x of class c, A loses n_c/(n_c-1)·rrᵀ with r = x - μ_c, ε changes with its trace, and only μ_c
    moves. In the eigenbasis of A, in which all of this is, another ε costs nothing, and rrᵀ goes by Sherman and
    Morrison's formula.
    """

    rows: Rows
    """(r,) of the sample."""
    y: Rows
    Z: Floats
    """(r, k) the rows."""
    R: Floats
    """(r, k) a row less its class's mean."""
    factor: Floats
    """(r,) n_c/(n_c-1)."""
    trace: Floats
    """(r,) of what is left of A."""
    n: int
    means: Floats
    """(C, k)"""
    values: Floats
    """(k,) of A."""

    @classmethod
    def of(cls, moments: Moments, sample: Problem, precision: type[np.floating] = np.float64) -> Self:
        """Prepare rows of the sample, which are in the sums, of classes that keep another one."""
        A, means = _scatter(moments)
        counts = moments.counts
        rows = np.flatnonzero(counts[sample.y] >= 2)  # noqa: PLR2004
        rows = stratified(sample.y, rows, MAX_LEFT_OUT, sample.options.seed)
        trace = np.trace(A)
        values, basis = eigen(A, precision)
        y, Z, means = sample.y[rows], sample.Z[rows].astype(precision) @ basis, means.astype(precision) @ basis
        R, factor = Z - means[y], (counts[y] / (counts[y] - 1.0)).astype(precision)
        trace = (trace - factor * np.einsum("rk,rk->r", R, R)).astype(precision)
        return cls(rows, y, Z, R, factor, trace, int(counts.sum()), means, values)

    def choose(self, seed: int) -> float:
        """Return the s with the least calibrated log loss, and what its distance from 1 costs."""
        part = self.take(stratified(self.y, np.arange(len(self.y)), MAX_CHOOSING, seed))
        # Python's floats leave rows in single precision single; NumPy's own make everything double.
        worth = {s: part.gain(s) - STEP_NATS * abs(math.log(s, 4)) for s in map(float, SHRINKAGES)}
        # Rounded, so that the same rows in sums of another order choose the same; of equals the one next to 1.
        return max(sorted(worth, key=lambda s: abs(math.log(s))), key=lambda s: round(worth[s], 6))

    def held_out(self, s: float) -> HeldOut:
        """Return the rows' logits."""
        return HeldOut(self.logits(s), self.rows, len(self.rows), "leave-one-out")

    def take(self, which: Rows) -> Self:
        """Return these of the rows."""
        Z, R = self.Z[which], self.R[which]
        return replace(
            self,
            rows=self.rows[which],
            y=self.y[which],
            Z=Z,
            R=R,
            factor=self.factor[which],
            trace=self.trace[which],
        )

    def gain(self, s: float) -> float:
        """Return the logarithms of the calibrated probabilities of the rows' classes, summed."""
        held = self.held_out(s)
        shares = probabilities(held.logits, fit_temperature(held, self.y), np.zeros(len(self.means)))
        return float(np.log(np.maximum(shares[np.arange(len(self.y)), self.y], np.finfo(float).tiny)).sum())

    def logits(self, s: float) -> Matrix:
        """Return them, (r, C)."""
        some = self.trace > _NO_SCATTER * (self.n - 1)
        logits = np.empty((len(self.rows), len(self.means)))
        if some.any():
            logits[some] = (self if some.all() else self.take(np.flatnonzero(some))).without(s)
        if not some.all():
            logits[~some] = self.take(np.flatnonzero(~some)).without_scatter()
        return logits

    def without(self, s: float) -> Matrix:
        """Return the logits where scatter is left."""
        own, y, means = np.arange(len(self.y)), self.y, self.means
        ridge = s * self.trace / max(self.n - 2, 1)
        # P = ε(Λ + εI)⁻¹ before the correction by v: xᵀPm, mᵀPm and vᵀm for every row and class, as matrix products.
        P = ridge[:, None] / (self.values + ridge[:, None])
        v = self.R * P
        gain = self.factor / (ridge - self.factor * np.einsum("rk,rk->r", self.R, v))
        xP = self.Z * P
        xPm, mPm, vm = xP @ means.T, P @ (means**2).T, v @ means.T
        # The own class's mean moves away from the row by (factor - 1)·r.
        moved = means[y] - (self.factor - 1)[:, None] * self.R
        xPm[own, y] = np.einsum("rk,rk->r", xP, moved)
        mPm[own, y] = np.einsum("rk,rk->r", moved * P, moved)
        vm[own, y] = np.einsum("rk,rk->r", v, moved)
        vx = np.einsum("rk,rk->r", v, self.Z)
        return np.asarray(xPm + (gain * vx)[:, None] * vm - (mPm + gain[:, None] * vm**2) / 2)

    def without_scatter(self) -> Matrix:
        """Return the logits where none is left."""
        means = self.means
        logits = np.asarray(self.Z @ means.T - np.einsum("ck,ck->c", means, means) / 2, dtype=np.float64)
        moved = means[self.y] - (self.factor - 1)[:, None] * self.R
        logits[np.arange(len(self.y)), self.y] = np.einsum("rk,rk->r", self.Z - moved / 2, moved)
        return logits


KIND = Kind(
    "lda",
    ("center", "class_weight", "shrinkage"),
    fit,
    held_out,
    Linear.restore,
    one_shot_temperature=0.04,
    fit_moments=fit_moments,
    updatable=True,
)
