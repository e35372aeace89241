"""Several looks at one picture, until all have their vectors: then they are one vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from likewise_server.errors import LikewiseError
from likewise_server.pipeline.jobs import Embedded, Outcome


class Looks:
    """Collects the outcomes of the looks at one picture. Event loop only."""

    def __init__(self, count: int, keep: Callable[[NDArray[np.float32]], None] | None = None) -> None:
        """`keep` gets the vector that the looks make together."""
        self._missing = count
        self._keep = keep
        self._found: list[Embedded] = []
        self._error: LikewiseError | None = None

    def add(self, outcome: Outcome) -> Outcome | None:
        """Take in a look; return the outcome of the picture with the last one, None before."""
        self._missing -= 1
        if isinstance(outcome, LikewiseError):
            self._error = outcome
        else:
            self._found.append(outcome)
        if self._missing:
            return None
        if self._error:
            return self._error
        vector = mean_direction(np.stack([look.vector for look in self._found]))
        if self._keep:
            self._keep(vector)
        return Embedded(
            vector,
            sum(look.decode_s for look in self._found),
            sum(look.queue_s for look in self._found) / len(self._found),  # they waited side by side
            sum(look.forward_s for look in self._found),
        )


def mean_direction(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the directions of (n, dim) float32 vectors, (dim,) float32 of length 1.

    A vector of zeros has none and counts for nothing; zeros come back where nothing is left.
    """
    rows = vectors.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows / np.where(lengths > 0, lengths, 1.0)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    direction: NDArray[np.float32] = (mean / length if length > 0 else mean).astype(np.float32)
    return direction
