"""Adaptation: a map that makes vectors of one kind of pictures (the source) look like those of another (the target).

It needs no labels of the target. The training vectors go through it before a head is trained on them, so that what is
asked later, which comes from the target, goes through nothing. All three maps are affine, y = (x - a)·M + b on unit
rows, and their results are brought to length 1 again:

- center: M = I. The means of the two sets meet.
- coral: M = Cs^-½·Ct^½, "whiten and re-colour" (Sun, Feng and Saenko, "Return of frustratingly easy domain adaptation",
  AAAI 2016, arXiv:1511.05547). The paper leaves the means to a normalisation beforehand; here they move with the rest.
- ot: M = Cs^-½·(Cs^½·Ct·Cs^½)^½·Cs^-½, the optimal transport between two normal distributions, which moves vectors as
  little as any map that makes the covariances equal (Peyré and Cuturi, "Computational optimal transport", 2019, remark
  2.31; fitted from samples: Flamary, Lounici and Ferrari, 2019, arXiv:1905.10155).

Covariances are shrunk towards a multiple of I (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", 2004), without which fewer rows than dimensions have no inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_server.heads.base import unit_rows
from likewise_server.heads.inputs import check_vectors
from likewise_server.heads.validate import paired_interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from likewise_server.heads.base import Matrix, Vector

MIN_TARGET = 10
"""Target vectors under which a mean says little and a covariance nothing."""
_NO_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Adapter:
    """y = (x - a)·M + b for unit rows x; a and b are (d,), M is (d, d) or None for the identity."""

    a: Vector
    M: Matrix | None
    b: Vector

    def __call__(self, vectors: ArrayLike) -> Matrix:
        """Return the vectors (n, d) as unit rows (n, d) float64 of the target's kind."""
        moved = unit_rows(check_vectors(vectors, dim=len(self.a))) - self.a
        moved = (moved if self.M is None else moved @ self.M) + self.b
        lengths = np.linalg.norm(moved, axis=1)
        if not lengths.all():
            raise FailedPrecondition("a training vector is mapped onto nothing: use another method of adaptation")
        return unit_rows(moved)


def adapter(method: str, source: ArrayLike, target: ArrayLike) -> Adapter:
    """Return the map from source vectors (n, d) onto target vectors (m, d), whose labels play no part.

    Raises InvalidArgument for an unknown method and for vectors that `train` would refuse, FailedPrecondition for
    fewer than MIN_TARGET target vectors, or fewer than two of the source.
    """
    if method not in METHODS:
        raise InvalidArgument(f"unknown adaptation {method!r}: use one of {', '.join(METHODS)}")
    least = (("source", source, 2), ("target", target, MIN_TARGET))
    S, T = (_checked(name, vectors, fewest) for name, vectors, fewest in least)
    if S.shape[1] != T.shape[1]:
        raise FailedPrecondition(f"source vectors have {S.shape[1]} dimensions, target vectors {T.shape[1]}")
    return Adapter(S.mean(axis=0), METHODS[method](S, T), T.mean(axis=0))


def _checked(name: str, vectors: ArrayLike, fewest: int) -> Matrix:
    if (count := len(np.asarray(vectors))) < fewest:
        raise FailedPrecondition(f"an adaptation needs at least {fewest} {name} items, there are {count}: add some")
    return unit_rows(check_vectors(vectors))


def _center(_source: Matrix, _target: Matrix) -> None:
    """Return no matrix: only the means move."""


def _coral(source: Matrix, target: Matrix) -> Matrix:
    return np.asarray(_power(_covariance(source), -0.5) @ _power(_covariance(target), 0.5))


def _transport(source: Matrix, target: Matrix) -> Matrix:
    values, basis = _eigen(_covariance(source))
    root, inverse = (basis * values**power @ basis.T for power in (0.5, -0.5))
    middle = _power(root @ _covariance(target) @ root, 0.5)
    return np.asarray(inverse @ middle @ inverse)


METHODS: dict[str, Callable[[Matrix, Matrix], Matrix | None]] = {"center": _center, "coral": _coral, "ot": _transport}


def _covariance(rows: Matrix) -> Matrix:
    """Return the shrunk covariance of rows (n, d), (d, d)."""
    from sklearn.covariance import ledoit_wolf  # noqa: PLC0415

    covariance: Matrix = ledoit_wolf(rows)[0]
    return covariance


def _power(symmetric: Matrix, power: float) -> Matrix:
    values, basis = _eigen(symmetric)
    return np.asarray(basis * values**power @ basis.T)


def _eigen(symmetric: Matrix) -> tuple[Vector, Matrix]:
    values, basis = np.linalg.eigh((symmetric + symmetric.T) / 2)
    if values[-1] <= _NO_VARIANCE:
        raise FailedPrecondition("the items are all alike and have no covariance: add others, or adapt by center")
    # Where shrinkage was not called for, rounding can leave a little less than nothing.
    return np.maximum(values, values[-1] * _NO_VARIANCE), basis


@dataclass(frozen=True)
class Gain:
    """How the share of right answers changed on the same n rows: after minus before, with its 95 % interval."""

    before: float
    after: float
    low: float
    high: float


def paired_gain(before: ArrayLike, after: ArrayLike) -> Gain:
    """Compare answers, right or not, to the same n >= 1 rows: (n,) booleans each. See `paired_interval`."""
    was, now = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    return Gain(float(was.mean()), float(now.mean()), *paired_interval(now - was))
