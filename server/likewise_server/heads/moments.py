"""Sums over the training rows, to which examples can be added and from which they can be taken away.

G = Σxxᵀ, Σx of each class and the class sizes are all that a class mean, a pooled covariance or a ridge
regression needs of its rows (RanPAC; McDonnell et al., 2023, arXiv:2307.02251). A `Ledger` says which rows are
in the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from likewise_server.heads.base import Matrix, Problem, Rows


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n rows (n, d) of C classes, in float64."""

    gram: Matrix | None
    """G (d, d); None for a kind that has no use for it."""
    sums: Matrix
    """(C, d): the sum of each class's rows."""
    counts: Rows
    """(C,)."""

    @classmethod
    def of(cls, problem: Problem, *, gram: bool) -> Self:
        """Sum up a problem's rows, each once: weights are not looked at."""
        G = problem.Z.T @ problem.Z if gram else None
        return cls(G, problem.class_sums(problem.Z), problem.counts)

    def plus(self, Z: Matrix, y: Rows, sign: int) -> Moments:
        """Add rows Z (m, d) of classes y (m,), or take them away with sign -1."""
        sums, counts = self.sums.copy(), self.counts.copy()
        np.add.at(sums, y, sign * Z)
        np.add.at(counts, y, sign)
        return Moments(None if self.gram is None else self.gram + sign * (Z.T @ Z), sums, counts)

    def reclass(self, numbers: Rows, n_classes: int) -> Moments:
        """Renumber the classes: `numbers` (C,) says what each becomes, -1 that it is empty and goes."""
        stay = numbers >= 0
        sums, counts = np.zeros((n_classes, self.sums.shape[1])), np.zeros(n_classes, dtype=np.intp)
        sums[numbers[stay]], counts[numbers[stay]] = self.sums[stay], self.counts[stay]
        return Moments(self.gram, sums, counts)


@dataclass(frozen=True, eq=False)
class Ledger:
    """The sums and the examples in them, for a head that keeps only some of its rows."""

    moments: Moments
    ids: tuple[str, ...]
    """Of all n examples, in order."""
    classes: NDArray[np.int32]
    """(n,) class numbers."""
    hashes: NDArray[np.uint64]
    """(n,): see `row_hashes`."""


def row_hashes(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a hash of each unit row (n, d): whether a vector is still the one that was added."""
    return _hashes(row.tobytes() for row in np.ascontiguousarray(rows))


def id_keys(ids: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Return a number for each id, as good as random, that is the same wherever it is asked for."""
    return _hashes(f"{seed}:{one}".encode() for one in ids)


def _hashes(parts: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(blake2b(part, digest_size=8).digest() for part in parts), dtype="<u8")
