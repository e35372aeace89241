"""Multinomial logistic regression, the usual linear head, fitted by L-BFGS to scikit-learn's optimum.

C is one of twelve, a decade apart, by stratified 3-fold cross-validation, as in RFS (Tian et al., 2020,
arXiv:2003.11539) and DINOv2 (Oquab et al., 2023, arXiv:2304.07193); 1 where a class has fewer than three
rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear
from likewise_server.heads.validate import fold_numbers, k_fold, stratified

if TYPE_CHECKING:
    from likewise_server.heads.base import Matrix, Problem, Vector

GRID = 10.0 ** np.arange(-6, 6)
FOLDS = 3
# The grid needs 36 fits: on more rows than this it is searched on a stratified subset.
MAX_GRID_ROWS = 1000
_GRID_EFFORT = (100, 1e-3)
_FINAL_EFFORT = (1000, 1e-6)


def _solve(problem: Problem, C: float, effort: tuple[int, float], start: Linear | None = None) -> tuple[Linear, bool]:
    """Minimise scikit-learn's objective, mean loss + |W|² / (2·C·n); the flag says whether it converged.

    scikit-learn's own fit is not called because it reports non-convergence by a warning, and catching one
    changes the filters of the whole process, whatever its other threads do.
    """
    from scipy.optimize import minimize  # noqa: PLC0415

    (n, d), K = problem.Z.shape, problem.n_classes
    weights, one_hot = problem.weights / n, problem.one_hot
    # With two classes scikit-learn penalises the difference of the two columns, which is half as strict.
    penalty = (2.0 if K == 2 else 1.0) / (C * n)  # noqa: PLR2004

    def objective(flat: Vector) -> tuple[float, Vector]:
        W = flat.reshape(d + 1, K)
        logits = problem.Z @ W[:d] + W[d]
        loss = float(weights @ _log_loss(logits, problem.y)) + penalty / 2 * float(np.sum(W[:d] ** 2))
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (shares / shares.sum(axis=1, keepdims=True) - one_hot) * weights[:, None]
        slope = np.vstack([problem.Z.T @ error + penalty * W[:d], error.sum(axis=0)])
        return loss, slope.ravel()

    first = np.zeros((d + 1) * K) if start is None else np.vstack([start.W, start.b]).ravel()
    settings = {"maxiter": effort[0], "gtol": effort[1], "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=settings)
    W = found.x.reshape(d + 1, K)
    return Linear(W[:d], W[d]), bool(found.success)


def fit(problem: Problem) -> Fit:
    """Choose C (unless it is given) and fit all rows."""
    compact, basis = _compact(problem)
    C = problem.options.C or _best_c(compact)
    linear, converged = _solve(compact, C, _FINAL_EFFORT)
    warning = () if converged else (f"logreg stopped after {_FINAL_EFFORT[0]} steps, short of its optimum",)
    return Fit(linear if basis is None else Linear(basis @ linear.W, linear.b), {"C": C}, warning)


def _compact(problem: Problem) -> tuple[Problem, Matrix | None]:
    """Return the problem in the coordinates of its rows' span, and that basis (d, n); as it is where n ≥ d.

    The penalty keeps W in that span, so the optimum is the same, and few rows of many dimensions cost little.
    """
    n, d = problem.Z.shape
    if n >= d:
        return problem, None
    basis, coordinates = np.linalg.qr(problem.Z.T)
    return replace(problem, Z=np.ascontiguousarray(coordinates.T)), np.asarray(basis, dtype=np.float64)


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
        start = None
        # Along the path from strong to weak penalty each solution is a good start for the next.
        for i, C in enumerate(GRID):
            start, _ = _solve(inside, float(C), _GRID_EFFORT, start)
            logits, weights = start.logits(outside.Z, outside.Z), outside.weights
            hits[i] += weights @ (logits.argmax(axis=1) == outside.y)
            losses[i] += weights @ _log_loss(logits, outside.y)
    best = min(range(len(GRID)), key=lambda i: (-round(float(hits[i]), 6), losses[i], i))
    return float(GRID[best])


def _log_loss(logits: Matrix, y: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Vector:
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(
        np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(y)), y], dtype=np.float64
    )


def held_out(problem: Problem) -> HeldOut:
    """Out-of-fold logits with C fixed."""
    return k_fold(KIND, problem, FOLDS)


KIND = Kind("logreg", ("center", "C", "class_weight"), fit, held_out, Linear.restore, one_shot_temperature=0.035)
