"""Symmetric systems: Cholesky factors and eigenvectors, by SciPy, which is imported when first needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from likewise_server.heads.base import Floats, Matrix


@dataclass(frozen=True, eq=False)
class Factor:
    """A + λI = LLᵀ, for the price of half an elimination."""

    L: Matrix
    """(k, k), lower; above the diagonal anything."""

    @classmethod
    def of(cls, A: Matrix, lam: float) -> Self:
        """Factor symmetric A (k, k) plus λ > 0 on its diagonal. LinAlgError where that is not positive definite."""
        from scipy.linalg import cho_factor  # noqa: PLC0415

        shifted = A.copy()
        shifted[np.diag_indices(len(shifted))] += lam
        return cls(cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)[0])

    def solve(self, B: Matrix) -> Matrix:
        """Return (A + λI)⁻¹B, (k, m)."""
        from scipy.linalg import cho_solve  # noqa: PLC0415

        return np.asarray(cho_solve((self.L, True), B, check_finite=False), dtype=np.float64)

    def half(self, B: Matrix) -> Matrix:
        """Return L⁻¹B, (k, m): the columns' squares sum up to the diagonal of Bᵀ(A + λI)⁻¹B."""
        from scipy.linalg import solve_triangular  # noqa: PLC0415

        return np.asarray(solve_triangular(self.L, B, lower=True, check_finite=False), dtype=np.float64)


def eigen(A: Matrix, precision: type[np.floating]) -> tuple[Floats, Floats]:
    """Return the eigenvalues (k,) and eigenvectors (k, k) of symmetric A, which has none below 0, in `precision`."""
    from scipy.linalg import eigh  # noqa: PLC0415

    values, basis = eigh(A.astype(precision), driver="evd", overwrite_a=True, check_finite=False)
    return np.maximum(values, 0), basis
