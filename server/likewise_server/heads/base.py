"""What a kind of head is: it turns a `Problem` into a `Fit`, and says what held-out rows would have scored.

A head file defines one `Kind`; everything around it (checks, calibration, rejection, metrics, storage) is
shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from likewise_server.heads.moments import Moments
    from likewise_server.heads.options import HeadOptions

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Floats = NDArray[np.floating]
"""Of any shape, in single or double precision."""
Rows = NDArray[np.intp]
Arrays = dict[str, NDArray[np.float64]]


class Scorer(Protocol):
    """A fitted head: two views of the same m vectors in, logits out."""

    def logits(self, Z: Matrix, similarities: NDArray[np.floating]) -> Matrix:
        """Score vectors.

        Z is (m, d) float64, unit rows in the head's scoring space; similarities is (m, n), their cosines
        to the n supports. Returns (m, C) float64.
        """
        ...

    def arrays(self) -> Arrays:
        """Return the state, all of it, as float64 arrays."""
        ...

    def member_logits(self, Z: Matrix) -> Iterable[Matrix]:
        """Yield what each member of an ensemble scores, (m, C); nothing where there are none."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """logits = Z·W + b, with W (d, C) and b (C,). Ignores the similarities."""

    W: Matrix
    b: Vector

    def __post_init__(self) -> None:
        # One memory layout: a transposed W takes another BLAS path, which may round differently.
        object.__setattr__(self, "W", np.ascontiguousarray(self.W))

    def logits(self, Z: Matrix, similarities: NDArray[np.floating]) -> Matrix:  # noqa: ARG002
        """See Scorer."""
        return np.asarray(Z @ self.W + self.b)

    def arrays(self) -> Arrays:
        """See Scorer."""
        return {"W": self.W, "b": self.b}

    def member_logits(self, Z: Matrix) -> Iterable[Matrix]:  # noqa: ARG002
        """See Scorer."""
        return ()

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Linear:
        """Build again from `arrays()`."""
        return cls(arrays["W"], arrays["b"])


@dataclass(frozen=True, eq=False)
class Problem:
    """Labelled unit vectors: Z (n, d) float64, y (n,) class numbers. Every class has at least one row."""

    Z: Matrix
    y: Rows
    n_classes: int
    options: HeadOptions
    totals: Rows | None = None
    """Class sizes to weigh up to, (C,): a fold keeps the proportions of the whole."""
    emphasis: Vector | None = None
    """Further weights of the rows, (n,): boosting's."""
    blocks: tuple[int, ...] = ()
    """Widths of the parts that a row is made of, where it is several backbones' features side by side."""

    @property
    def counts(self) -> Rows:
        """Rows per class, (C,)."""
        return np.bincount(self.y, minlength=self.n_classes)

    @property
    def one_hot(self) -> Matrix:
        """(n, C) of 0 and 1."""
        Y = np.zeros((len(self.y), self.n_classes))
        Y[np.arange(len(self.y)), self.y] = 1.0
        return Y

    def class_sums(self, X: Matrix) -> Matrix:
        """Sum the rows of X (n, k) class by class, (C, k): one pass, where a product with `one_hot` takes C."""
        from scipy.sparse import csr_array  # noqa: PLC0415

        n = len(self.y)
        one_hot = csr_array((np.ones(n), (self.y, np.arange(n))), shape=(self.n_classes, n))
        return np.asarray(one_hot @ X, dtype=np.float64)

    @property
    def weights(self) -> Vector:
        """Weight of each row, (n,), of mean 1."""
        balanced = self.options.class_weight == "balanced"
        totals = np.ones(self.n_classes) if balanced else self.counts if self.totals is None else self.totals
        weights = (totals / self.counts)[self.y]
        if self.emphasis is not None:
            weights = weights * self.emphasis
        return np.asarray(weights / weights.mean(), dtype=np.float64)

    def take(self, rows: Rows) -> Problem:
        """Return the problem of these rows only."""
        emphasis = None if self.emphasis is None else self.emphasis[rows]
        return replace(self, Z=self.Z[rows], y=self.y[rows], emphasis=emphasis)

    def fixing(self, chosen: Mapping[str, float]) -> Problem:
        """Return the same problem with what a fit chose as its options."""
        return replace(self, options=replace(self.options, **chosen))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Fit:
    """A scorer and the hyperparameters that were chosen for it, named as options are."""

    scorer: Scorer
    chosen: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    held_out: HeldOut | None = None
    """Where choosing the hyperparameters has already found it."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits (r, C) that the rows (r,) got from a fit that had not seen them."""

    logits: Matrix
    rows: Rows
    n_folds: int
    method: str


@dataclass(frozen=True)
class Kind:
    """One kind of head.

    held_out takes a problem whose hyperparameters are fixed and never sees a row whose class has no other.
    options names those of HeadOptions that it has besides the common ones.
    one_shot_temperature serves where no row can be held out; docs/heads.md says how it was measured.
    """

    name: str
    options: tuple[str, ...]
    fit: Callable[[Problem], Fit]
    held_out: Callable[[Problem], HeldOut]
    restore: Callable[[Mapping[str, NDArray[np.float64]]], Scorer]
    one_shot_temperature: float
    fit_moments: Callable[[Moments, Problem], Fit] | None = None
    """Fit from the sums over all rows, and hold out those of a sample; None for a kind that needs every row."""
    gram: bool = True
    """Whether that takes G."""
    updatable: bool = False
    """Whether it has a closed form, so that training again from the rows a head keeps takes no time."""
    votes: bool = False
    """Whether its supports vote: then all rows are kept, and scoring takes the similarities to them."""


def holdable(problem: Problem) -> Rows:
    """Return the rows that can be held out: those whose class keeps another one."""
    return np.flatnonzero(problem.counts[problem.y] >= 2)  # noqa: PLR2004


def in_span(problem: Problem) -> tuple[Problem, Matrix | None]:
    """Return the problem in the coordinates of its rows' span, and that basis (d, n); as it is where n ≥ d.

    Whatever goes by inner products finds the same there, and few rows of many dimensions cost little.
    """
    n, d = problem.Z.shape
    if n >= d:
        return problem, None
    basis, coordinates = np.linalg.qr(problem.Z.T)
    return replace(problem, Z=np.ascontiguousarray(coordinates.T)), np.asarray(basis, dtype=np.float64)


def unit_rows(X: NDArray[np.floating], mean: Vector | None = None) -> Matrix:
    """Scale each row of X (n, d) to length 1; given a mean (d,), subtract it and scale again. Float64.

    A row that the mean reduces to nothing becomes zeros: its direction would be rounding noise.
    """
    Z = np.asarray(X, dtype=np.float64)
    Z = np.asarray(Z / np.linalg.norm(Z, axis=1, keepdims=True), dtype=np.float64)
    if mean is None:
        return Z
    Z = Z - mean
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    tiny = length < 1e-6  # noqa: PLR2004  (float32's rounding on a unit vector)
    Z[tiny[:, 0]] = 0.0
    return np.asarray(Z / np.where(tiny, 1.0, length), dtype=np.float64)
