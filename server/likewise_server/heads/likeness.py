"""Likeness: how far a vector is like the class it is most like, by a regression that falls to 0 far from everything.

Ridge regression onto the classes with λ = 1, every class weighing the same; the likeness is the largest output. It
is the mean of a Gaussian process with a linear kernel (Kapoor et al., 2007, and Kemmler et al., 2013, tell new
classes so): 1 on what it was shown often, 0 on directions that it never saw. Leaving out one row, or a whole class,
has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import unit_rows
from likewise_server.heads.symmetric import Factor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from likewise_server.heads.base import Matrix, Rows, Vector


@dataclass(frozen=True, eq=False)
class Likeness:
    """The regression: W (d, C) on unit rows, centred by the mean (d,) where there is one."""

    W: NDArray[np.float32]
    mean: Vector | None

    def of(self, plain: Matrix) -> Vector:
        """Return the likeness (m,) of unit rows (m, d): about 0 to 1."""
        Z = plain if self.mean is None else unit_rows(plain, self.mean)
        return np.asarray((Z.astype(np.float32) @ self.W).max(axis=1), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The likeness (n,) of each row with itself left out, and with its whole class left out."""

    row: Vector
    whole_class: Vector


def fit_likeness(rows: NDArray[np.floating], y: Rows, mean: Vector | None) -> tuple[Likeness, LeftOut]:
    """Fit unit rows (n, d) of classes y (n,), two classes or more, each with a row; and leave out what can be."""
    Z = unit_rows(rows, mean)
    counts = np.bincount(y)
    root = np.sqrt(len(y) / len(counts) / counts[y])[:, None]
    one_hot = np.zeros((len(y), len(counts)))
    one_hot[np.arange(len(y)), y] = 1.0
    W, rest, share = _solve(Z * root, one_hot * root)

    # With rows B left out, what they lack of their targets is ((I - H)_BB)⁻¹ of what they lack with them.
    diagonal = share(None)
    row = one_hot - rest / diagonal[:, None] / root
    whole_class = np.empty(len(y))
    for number in range(len(counts)):
        own = np.flatnonzero(y == number)
        outputs = one_hot[own] - np.linalg.solve(share(own), rest[own]) / root[own]
        whole_class[own] = np.delete(outputs, number, axis=1).max(axis=1)
    return Likeness(np.ascontiguousarray(W, np.float32), mean), LeftOut(row.max(axis=1), whole_class)


def _solve(A: Matrix, Y: Matrix) -> tuple[Matrix, Matrix, Callable[[Rows | None], Matrix]]:
    """Return W, (I - H)·Y with H the hat matrix, and I - H: its diagonal for None, else its block of those rows."""
    n, d = A.shape
    if n <= d:
        inverse = Factor.of(A @ A.T, 1.0).solve(np.eye(n))
        rest = inverse @ Y
        return A.T @ rest, rest, lambda rows: np.diagonal(inverse) if rows is None else inverse[np.ix_(rows, rows)]
    factor = Factor.of(A.T @ A, 1.0)
    W = factor.solve(A.T @ Y)
    half = factor.half(A.T).T

    def share(rows: Rows | None) -> Matrix:
        if rows is None:
            return np.asarray(1.0 - np.einsum("nd,nd->n", half, half))
        return np.asarray(np.eye(len(rows)) - half[rows] @ half[rows].T)

    return W, Y - A @ W, share
