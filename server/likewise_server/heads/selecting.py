"""Which examples of one kind of pictures (the source) are worth training on for another (the target).

Selection in hindsight: what a head trained without the example gets wrong is left out, and of the rest, the share of
each class that lies nearest to the target is kept. Each class by itself: a target that is nearer to some classes must
not cost the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads.base import unit_rows
from likewise_server.heads.inputs import check_vectors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Rows, Vector
    from likewise_server.heads.judging import Judged

NEIGHBOURS = 10
"""Target vectors that nearness is measured to."""
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Selection:
    """What becomes of n examples: `kept` (n,); `wrong` (n,) are those that a head without them got wrong."""

    kept: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    nearness: Vector
    """Mean cosine to the nearest target vectors, (n,)."""


def select(judged: Judged, vectors: ArrayLike, target: ArrayLike, keep: float) -> Selection:
    """Select among the vectors (n, d) that were judged, for a target (m, d); keep is a share, over 0 and up to 1.

    What could not be judged counts as right. Of each class at least one right example is kept.
    Raises InvalidArgument for another share, and for vectors that `train` would refuse.
    """
    if not 0 < keep <= 1:  # NaN too
        raise InvalidArgument(f"keep is {keep:g}: give the share to keep, over 0 and up to 1")
    near = _nearness(vectors, target)
    wrong = np.zeros(len(near), dtype=np.bool_)
    wrong[judged.rows] = judged.answers[judged.rows] != judged.y[judged.rows]
    kept = np.zeros(len(near), dtype=np.bool_)
    for label in range(len(judged.classes)):
        right = np.flatnonzero((judged.y == label) & ~wrong)
        kept[_nearest(right, near, math.ceil(keep * len(right)))] = True
    return Selection(kept, wrong, near)


def _nearest(rows: Rows, near: Vector, count: int) -> Rows:
    return rows[np.argsort(-near[rows], kind="stable")[:count]]


def _nearness(vectors: ArrayLike, target: ArrayLike) -> Vector:
    X, T = unit_rows(check_vectors(vectors)), unit_rows(check_vectors(target))
    k = min(NEIGHBOURS, len(T))
    parts = [np.partition(X[i : i + _CHUNK] @ T.T, -k, axis=1)[:, -k:].mean(axis=1) for i in range(0, len(X), _CHUNK)]
    return np.concatenate(parts)
