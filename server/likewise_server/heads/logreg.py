"""Multinomial logistic regression, the usual linear head, fitted by L-BFGS to scikit-learn's optimum.

C is one of twelve, a decade apart, by stratified 3-fold cross-validation, as in RFS (Tian et al., 2020,
arXiv:2003.11539) and DINOv2 (Oquab et al., 2023, arXiv:2304.07193); 1 where a class has fewer than three
rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear
from likewise_server.heads.validate import fold_numbers, k_fold, stratified

if TYPE_CHECKING:
    from likewise_server.heads.base import Matrix, Problem, Rows, Vector

GRID = 10.0 ** np.arange(-6, 6)
FOLDS = 3
# The grid needs 36 fits: on more rows than this it is searched on a stratified subset.
MAX_GRID_ROWS = 1000


@dataclass(frozen=True)
class _Effort:
    """Steps at most, what the largest slope has to fall to of its first value, and the precision of the products."""

    steps: int
    slope: float
    dtype: type[np.floating]


_ROUGH = _Effort(100, 1e-3, np.float32)
_FINE = _Effort(1000, 3e-5, np.float64)


@dataclass(frozen=True, eq=False)
class _Coordinates:
    """The rows (n, r) less their mean (d,), along the directions (d, r) in which they vary, and how much (r,).

    Features of a network share a large mean and vary along some directions a thousand times more than along others.
    Seen like this, each direction can be scaled for the loss to bend alike along all of them: L-BFGS then takes
    tens of steps instead of hundreds. The penalty keeps W in the span of the rows, so the optimum is the same.
    """

    rows: Matrix
    variances: Vector
    directions: Matrix
    mean: Vector

    @classmethod
    def of(cls, Z: Matrix) -> Self:
        n, d = Z.shape
        mean = Z.mean(axis=0)
        R = Z - mean
        if n > d:
            values, directions = np.linalg.eigh(R.T @ R)
            return cls(R @ directions, np.maximum(values, 0.0) / n, directions, mean)
        values, basis = np.linalg.eigh(R @ R.T)
        some = values > 1e-12 * max(float(values[-1]), 1e-12)
        root, basis = np.sqrt(values[some]), basis[:, some]
        return cls(basis * root, values[some] / n, R.T @ (basis / root), mean)

    @classmethod
    def given(cls, rows: Matrix) -> Self:
        """Take rows (n, r) that are such coordinates already, or some of them: directions and mean stay theirs."""
        r = rows.shape[1]
        return cls(rows, np.mean(rows**2, axis=0), np.empty((0, r)), np.empty(0))

    def see(self, Z: Matrix) -> Matrix:
        """Return other rows (m, d) in these coordinates, (m, r)."""
        return np.asarray((Z - self.mean) @ self.directions, dtype=np.float64)

    def back(self, linear: Linear) -> Linear:
        """Return what scores rows as they are."""
        W = self.directions @ linear.W
        return Linear(W, linear.b - self.mean @ W)


def _solve(
    at: _Coordinates, problem: Problem, C: float, effort: _Effort, start: Linear | None = None
) -> tuple[Linear, bool]:
    """Minimise scikit-learn's objective, mean loss + |W|² / (2·C·n); the flag says whether it converged.

    scikit-learn's own fit is not called because on rows of length 1 its tolerance, which is an absolute one, is met
    after a few steps from the start; and because it reports non-convergence by a warning, and catching one changes
    the filters of the whole process, whatever its other threads do.
    """
    from scipy.optimize import minimize  # noqa: PLC0415

    (n, r), K = at.rows.shape, problem.n_classes
    weights, own = problem.weights / n, (np.arange(n), problem.y)
    # With two classes scikit-learn penalises the difference of the two columns, which is half as strict.
    penalty = (2.0 if K == 2 else 1.0) / (C * n)  # noqa: PLR2004
    # At W = 0 the loss bends by variance/K along each direction and by 1/K along b.
    scale = np.append(1 / np.sqrt(at.variances / K + penalty), np.sqrt(K))[:, None]
    X, stiff = (at.rows * scale[:r, 0]).astype(effort.dtype), penalty * scale[:r] ** 2

    def objective(flat: Vector) -> tuple[float, Vector]:
        U = flat.reshape(r + 1, K)
        logits = (X @ U[:r].astype(effort.dtype, copy=False)).astype(np.float64, copy=False)
        logits += scale[r] * U[r]
        logits -= logits.max(axis=1, keepdims=True)
        correct = logits[own]
        shares = np.exp(logits, out=logits)
        total = shares.sum(axis=1)
        loss = float(weights @ (np.log(total) - correct)) + float(np.sum(stiff * U[:r] ** 2)) / 2
        error = shares
        error *= (weights / total)[:, None]
        error[own] -= weights
        slope = np.empty_like(U)
        np.multiply(stiff, U[:r], out=slope[:r])
        slope[:r] += X.T @ error.astype(effort.dtype, copy=False)
        slope[r] = scale[r] * error.sum(axis=0)
        return loss, slope.ravel()

    first = np.zeros((r + 1) * K) if start is None else (np.vstack([start.W, start.b]) / scale).ravel()
    # The largest slope at W = 0, where every share is 1/K.
    sums = problem.class_sums(at.rows * weights[:, None]) - (weights @ at.rows) / K
    steepest = float(np.abs(sums.T * scale[:r]).max(initial=0.0))
    settings = {
        "maxiter": effort.steps,
        "gtol": effort.slope * steepest,
        "ftol": 64 * np.finfo(float).eps,
        "maxls": 50,
        "maxcor": 5,  # more history costs more to walk through than it saves here
    }
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=settings)
    W = found.x.reshape(r + 1, K) * scale
    return Linear(W[:r], W[r]), bool(found.success)


def fit(problem: Problem) -> Fit:
    """Choose C (unless it is given) and fit all rows."""
    C = problem.options.C or _best_c(problem)
    at = _Coordinates.of(problem.Z)
    near, _ = _solve(at, problem, C, _ROUGH)
    linear, converged = _solve(at, problem, C, _FINE, near)
    warning = () if converged else (f"logreg stopped after {_FINE.steps} steps, short of its optimum",)
    return Fit(at.back(linear), {"C": C}, warning)


def _best_c(problem: Problem) -> float:
    """Return the C with the best held-out accuracy, then the least log loss, then the strongest penalty."""
    if problem.counts.min() < FOLDS or problem.n_classes == 1:
        return 1.0
    seed = problem.options.seed
    part = problem.take(stratified(problem.y, np.arange(len(problem.y)), MAX_GRID_ROWS, seed))
    folds = fold_numbers(part.y, FOLDS, seed)
    hits, losses = np.zeros(len(GRID)), np.zeros(len(GRID))
    for fold in range(FOLDS):
        inside, outside = part.take(np.flatnonzero(folds != fold)), part.take(np.flatnonzero(folds == fold))
        at, start = _Coordinates.of(inside.Z), None
        seen, weights = at.see(outside.Z), outside.weights
        # Along the path from strong to weak penalty each solution is a good start for the next.
        for i, C in enumerate(GRID):
            start, _ = _solve(at, inside, float(C), _ROUGH, start)
            logits = start.logits(seen, seen)
            hits[i] += weights @ (logits.argmax(axis=1) == outside.y)
            losses[i] += weights @ _log_loss(logits, outside.y)
    best = min(range(len(GRID)), key=lambda i: (-round(float(hits[i]), 6), losses[i], i))
    return float(GRID[best])


def _log_loss(logits: Matrix, y: Rows) -> Vector:
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(
        np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(y)), y], dtype=np.float64
    )


def held_out(problem: Problem) -> HeldOut:
    """Out-of-fold logits with C fixed, near the optimum: the coordinates are found once, for all rows."""
    seen = replace(problem, Z=_Coordinates.of(problem.Z).rows)
    return k_fold(replace(KIND, fit=_fit_seen), seen, FOLDS)


def _fit_seen(problem: Problem) -> Fit:
    return Fit(_solve(_Coordinates.given(problem.Z), problem, problem.options.C or 1.0, _ROUGH)[0])


KIND = Kind("logreg", ("center", "C", "class_weight"), fit, held_out, Linear.restore, one_shot_temperature=0.035)
