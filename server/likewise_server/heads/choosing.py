"""Which unlabelled vectors are worth a label: typical ones of what has none yet, then those between two classes.

While labels are few, what is typical teaches more than what is uncertain, and later it is the other way round (Hacohen,
Dekel and Weinshall, "Active learning on a budget: opposite strategies suit high and low budgets", 2022,
arXiv:2202.02794). As in their TypiClust, the vectors are clustered by k-means; in the largest clusters without a label
the vector with the densest surroundings is chosen. When every cluster has a label, the smallest margins between the two
likeliest classes come next. Nothing is chosen that is nearly the same as what is chosen or labelled already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from likewise_server.heads.base import unit_rows
from likewise_server.heads.inputs import check_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Matrix, Rows, Vector

    Rows32 = NDArray[np.float32]

NEIGHBOURS = 20
"""That typicality is measured to, as in the paper."""
SAME, COPY = 0.95, 0.995
"""Cosines from which two pictures are nearly the same, so that the label of one tells that of the other: with the mean
of all subtracted, as some kinds of pictures are all alike without; and as they are."""
SMALLEST, MOST_CLUSTERS = 5, 300
"""Vectors that make a cluster worth a label (the paper has the same), and clusters that are still quick to find."""
_CHUNK = 1024

Reason: TypeAlias = Literal["typical", "uncertain"]


@dataclass(frozen=True)
class Choice:
    """A row of the pool to label, and why."""

    row: int
    reason: Reason


def choose(pool: ArrayLike, labelled: ArrayLike, shares: ArrayLike | None, count: int, seed: int = 0) -> list[Choice]:
    """Return up to `count` rows of the pool (m, d) to label, in that order.

    labelled (n, d), which may be empty, has labels already; shares (m, C) are the probabilities of the classes known so
    far, None or a single column where there is nothing to be uncertain between.
    """
    P = unit_rows(check_vectors(pool)).astype(np.float32)
    L = unit_rows(check_vectors(labelled)).astype(np.float32) if np.size(labelled) else P[:0]
    sure = shares is None or np.shape(shares)[1] < 2  # noqa: PLR2004
    picked = _Picked(P, L, count)
    picked.take(_typical(P, L, count, 1 if shares is None else np.shape(shares)[1], seed), "typical")
    if sure:
        picked.take(np.argsort(-_typicality(P), kind="stable"), "typical")
    else:
        picked.take(_uncertain(np.asarray(shares, dtype=np.float64)), "uncertain")
    return picked.choices


class _Picked:
    """What is chosen so far; passes over what is nearly the same as that or as what is labelled."""

    def __init__(self, pool: Rows32, labelled: Rows32, count: int) -> None:
        self.choices: list[Choice] = []
        self._count = count
        mean = np.concatenate([pool, labelled]).mean(axis=0, dtype=np.float64)
        centred, known_centred = (unit_rows(rows, mean).astype(np.float32) for rows in (pool, labelled))
        self._views = [(pool, COPY), (centred, SAME)]
        self._told = np.zeros(len(pool), dtype=np.bool_)
        for (rows, least), known in zip(self._views, (labelled, known_centred), strict=True):
            for start in range(0, len(known), _CHUNK):
                self._told |= (rows @ known[start : start + _CHUNK].T).max(axis=1) >= least

    def take(self, rows: Iterable[int], reason: Reason) -> None:
        """Choose of these rows, in order, until there are enough."""
        for row in map(int, rows):
            if len(self.choices) < self._count and not self._told[row]:
                self.choices.append(Choice(row, reason))
                for view, least in self._views:
                    self._told |= view @ view[row] >= least
                self._told[row] = True


def _typical(pool: Rows32, labelled: Rows32, count: int, classes: int, seed: int) -> list[int]:
    """Return a typical row of each cluster without a label, the largest cluster first."""
    from sklearn.cluster import KMeans  # noqa: PLC0415

    rows = np.concatenate([pool, labelled])
    different = len({row.tobytes() for row in rows})
    wanted = min(classes + count, different // SMALLEST, MOST_CLUSTERS)
    if wanted < 1:
        return list(np.argsort(-_typicality(pool), kind="stable"))
    cluster = KMeans(wanted, n_init=1, max_iter=20, random_state=seed).fit_predict(rows)
    covered = set(cluster[len(pool) :].tolist())
    members = [np.flatnonzero(cluster[: len(pool)] == each) for each in range(wanted) if each not in covered]
    members.sort(key=lambda each: -len(each))
    return [_densest(pool, each) for each in members if len(each) >= SMALLEST]


def _densest(pool: Rows32, members: Rows) -> int:
    return int(members[_typicality(pool[members]).argmax()])


def _typicality(rows: Rows32) -> Vector:
    """Return the inverse mean distance to the nearest NEIGHBOURS others, (n,)."""
    k = min(NEIGHBOURS, len(rows) - 1)
    if k < 1:
        return np.ones(len(rows))
    found = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        cosines = rows[start : start + _CHUNK] @ rows.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        nearest = np.partition(cosines, -k, axis=1)[:, -k:]
        found[start : start + _CHUNK] = np.sqrt(np.maximum(2 - 2 * nearest, 0.0)).mean(axis=1)
    return np.asarray(1 / np.maximum(found, 1e-9))


def _uncertain(shares: Matrix) -> Rows:
    """Return the rows by the margin between their two likeliest classes, the smallest first."""
    two = np.partition(shares, -2, axis=1)[:, -2:]
    return np.argsort(two[:, 1] - two[:, 0], kind="stable")
