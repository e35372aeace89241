"""Nearest class mean: one prototype per class, the cosine to it is the logit.

With one unit vector per class this is a nearest-neighbour search; with a mean subtracted (`center`) it is
CL2N of SimpleShot (Wang et al., 2019, arXiv:1911.04623).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, holdable

if TYPE_CHECKING:
    from likewise_server.heads.base import Matrix, Problem, Rows
    from likewise_server.heads.moments import Moments


def _safe(length: Matrix) -> Matrix:
    """Opposite vectors can sum to nothing: such a class has no direction, and its cosine is 0."""
    return np.where(length < 1e-9, np.inf, length)  # noqa: PLR2004


def fit(problem: Problem) -> Fit:
    """Average each class and scale the average to length 1."""
    return Fit(_prototypes(problem.class_sums(problem.Z)))


def fit_moments(moments: Moments, sample: Problem) -> Fit:
    """Fit from sums; what is held out are rows of the sample, each taken out of the sums in turn."""
    rows = np.flatnonzero(moments.counts[sample.y] >= 2)  # noqa: PLR2004
    return Fit(_prototypes(moments.sums), held_out=_leave_one_out(moments.sums, sample, rows))


def _prototypes(sums: Matrix) -> Linear:
    """Scale the sums (C, d) to length 1: dividing by the counts first would change nothing."""
    return Linear((sums / _safe(np.linalg.norm(sums, axis=1, keepdims=True))).T, np.zeros(len(sums)))


def held_out(problem: Problem) -> HeldOut:
    """Leave-one-out logits in closed form: only the own class's prototype changes, by one subtraction."""
    return _leave_one_out(problem.class_sums(problem.Z), problem, holdable(problem))


def _leave_one_out(sums: Matrix, problem: Problem, rows: Rows) -> HeldOut:
    lengths = np.linalg.norm(sums, axis=1)
    Z, y = problem.Z[rows], problem.y[rows]
    dots = Z @ sums.T
    logits = dots / _safe(lengths)
    own, squares = dots[np.arange(len(y)), y], np.einsum("nd,nd->n", Z, Z)
    rest = np.sqrt(np.maximum(lengths[y] ** 2 - 2 * own + squares, 0.0))
    # Cancellation leaves about 1e-8 where the rest is nothing, hence the wider guard.
    logits[np.arange(len(y)), y] = np.where(rest < 1e-6, 0.0, (own - squares) / np.maximum(rest, 1e-6))  # noqa: PLR2004
    return HeldOut(logits, rows, len(rows), "leave-one-out")


KIND = Kind(
    "ncm",
    ("center",),
    fit,
    held_out,
    Linear.restore,
    one_shot_temperature=0.04,
    fit_moments=fit_moments,
    gram=False,
    updatable=True,
)
