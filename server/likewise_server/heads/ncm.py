"""Nearest class mean: one prototype per class, the cosine to it is the logit.

With one unit vector per class this is a nearest-neighbour search; with a mean subtracted (`center`) it is
CL2N of SimpleShot (Wang et al., 2019, arXiv:1911.04623).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, holdable

if TYPE_CHECKING:
    from likewise_server.heads.base import Matrix, Problem


def _class_sums(problem: Problem) -> Matrix:
    """(C, d). The prototype's direction is the sum's: dividing by the count would change nothing."""
    return problem.one_hot.T @ problem.Z


def _safe(length: Matrix) -> Matrix:
    """Opposite vectors can sum to nothing: such a class has no direction, and its cosine is 0."""
    return np.where(length < 1e-9, np.inf, length)  # noqa: PLR2004


def fit(problem: Problem) -> Fit:
    """Average each class and scale the average to length 1."""
    sums = _class_sums(problem)
    prototypes = sums / _safe(np.linalg.norm(sums, axis=1, keepdims=True))
    return Fit(Linear(prototypes.T, np.zeros(problem.n_classes)))


def held_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits in closed form: only the own class's prototype changes, by one subtraction."""
    rows = holdable(problem)
    sums = _class_sums(problem)
    lengths = np.linalg.norm(sums, axis=1)
    Z, y = problem.Z[rows], problem.y[rows]
    dots = Z @ sums.T
    logits = dots / _safe(lengths)
    own, squares = dots[np.arange(len(y)), y], np.einsum("nd,nd->n", Z, Z)
    rest = np.sqrt(np.maximum(lengths[y] ** 2 - 2 * own + squares, 0.0))
    # Cancellation leaves about 1e-8 where the rest is nothing, hence the wider guard.
    logits[np.arange(len(y)), y] = np.where(rest < 1e-6, 0.0, (own - squares) / np.maximum(rest, 1e-6))  # noqa: PLR2004
    return HeldOut(logits, rows, len(rows), "leave-one-out")


KIND = Kind("ncm", ("center",), fit, held_out, Linear.restore, one_shot_temperature=0.04)
