"""k nearest neighbours: the supports most alike vote, each by softmax(similarity / 0.07).

The protocol of Wu et al. (2018, arXiv:1805.01978) and DINO (Caron et al., 2021, arXiv:2104.14294).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind, holdable
from likewise_server.heads.validate import MAX_LEFT_OUT, stratified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from likewise_server.heads.base import Arrays, Matrix, Problem, Vector

SHARPNESS = 0.07
# What a class gets without a vote, so that a logarithm exists and a certainty of 1 does not.
_FLOOR = 0.01
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Votes:
    """The supports' class numbers (n,) and voting weights (n,); C classes; k voters."""

    classes: Vector
    weights: Vector
    n_classes: int
    k: int

    def logits(self, Z: Matrix, similarities: NDArray[np.floating]) -> Matrix:  # noqa: ARG002
        """Logarithms of the votes' shares, (m, C)."""
        m, n = similarities.shape
        k = min(self.k, n)
        voters = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        nearness = np.take_along_axis(similarities, voters, axis=1).astype(np.float64)
        votes = np.exp((nearness - nearness.max(axis=1, keepdims=True)) / SHARPNESS) * self.weights[voters]
        cells = np.arange(m)[:, None] * self.n_classes + self.classes[voters].astype(np.intp)
        share = np.bincount(cells.ravel(), votes.ravel(), m * self.n_classes).reshape(m, self.n_classes)
        share = share / share.sum(axis=1, keepdims=True)
        return np.asarray(np.log((share + _FLOOR / self.n_classes) / (1 + _FLOOR)))

    def arrays(self) -> Arrays:
        """See Scorer."""
        return {
            "classes": self.classes,
            "weights": self.weights,
            "shape": np.array([self.n_classes, self.k], dtype=np.float64),
        }

    def member_logits(self, Z: Matrix) -> Iterable[Matrix]:  # noqa: ARG002
        """See Scorer."""
        return ()

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Votes:
        """Build again from `arrays()`."""
        n_classes, k = (int(v) for v in arrays["shape"])
        return cls(arrays["classes"], arrays["weights"], n_classes, k)


def _votes(problem: Problem) -> Votes:
    k = min(problem.options.k or 20, len(problem.y))
    return Votes(problem.y.astype(np.float64), problem.weights, problem.n_classes, k)


def fit(problem: Problem) -> Fit:
    """Nothing is fitted: the supports are the head."""
    votes = _votes(problem)
    return Fit(votes, {"k": votes.k})


def held_out(problem: Problem) -> HeldOut:
    """Leave-one-out votes, of at most MAX_LEFT_OUT rows against all others."""
    rows = stratified(problem.y, holdable(problem), MAX_LEFT_OUT, problem.options.seed)
    votes, supports = _votes(problem), problem.Z.astype(np.float32)
    logits = np.empty((len(rows), problem.n_classes))
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        similarities = supports[part] @ supports.T
        similarities[np.arange(len(part)), part] = -np.inf
        logits[start : start + _CHUNK] = votes.logits(problem.Z[part], similarities)
    return HeldOut(logits, rows, len(rows), "leave-one-out")


KIND = Kind(
    "knn", ("k", "class_weight"), fit, held_out, Votes.restore, one_shot_temperature=0.55, updatable=True, votes=True
)
