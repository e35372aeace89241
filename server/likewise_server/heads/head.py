"""A trained head: arrays and numbers that turn vectors into predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import unit_rows
from likewise_server.heads.calibration import probabilities
from likewise_server.heads.inputs import check_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Matrix, Scorer, Vector
    from likewise_server.heads.moments import Ledger
    from likewise_server.heads.rejection import Rejection

# Bounds the (rows, supports) similarities to 2048 x 5000 x 4 bytes for all kinds but large kNN heads.
_CHUNK = 2048


@dataclass(frozen=True)
class Metrics:
    """What the training examples themselves say of the head. Rates and accuracies lie in 0..1."""

    accuracy: float | None
    """Share of held-out examples classified rightly, nothing rejected; None where `note` says why."""
    accuracy_low: float | None
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float | None
    chance: float
    """What always answering the largest class would reach."""
    n: int
    """Examples trained on."""
    n_held_out: int
    """Examples that the accuracy was measured on."""
    n_folds: int
    """How often the head was fitted without some of them; equals n_held_out for leave-one-out; 0 for not."""
    method: str
    """"leave-one-out", "3-fold cross-validation" or ""."""
    per_class: Mapping[str, int]
    """Examples per class."""
    temperature: float
    false_reject_rate: float | None
    """Share of known examples turned away, by leave-one-out."""
    unknown_accept_rate: float | None
    """Share of examples accepted although their class was left out."""
    note: str = ""


@dataclass(frozen=True)
class Neighbour:
    """A training example and its cosine to the vector classified, without centring."""

    id: str
    label: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a head says of one vector."""

    label: str | None
    """The class, or None for unknown: novelty is over the threshold."""
    best: str
    """The most probable class, whether or not it was rejected."""
    score: float
    """The calibrated probability of `best`."""
    probabilities: NDArray[np.float64]
    """(C,), in the order of the head's classes; sums to 1."""
    novelty: float
    """How unlike it is to all training examples: about 0 alike to 1 unrelated; see rejection.py."""
    threshold: float
    neighbours: tuple[Neighbour, ...]
    """The nearest training examples, nearest first: why the head may think so."""
    spread: float | None = None
    """Standard deviation of the probability of `best` over an ensemble's members: how far they disagree."""


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A head ready for use. Immutable, so that threads may share it."""

    kind: str
    classes: tuple[str, ...]
    dim: int
    metrics: Metrics
    rejection: Rejection
    options: Mapping[str, object]
    """The options given that differ from the defaults."""
    chosen: Mapping[str, float]
    """The hyperparameters found by training: C, lam or k."""
    reason: str
    """Why `auto` chose this kind; "" for a kind that was asked for."""
    warnings: tuple[str, ...]
    support_ids: tuple[str, ...]
    support_classes: NDArray[np.int32]
    supports: NDArray[np.float32]
    """(n, d) unit rows: what novelty and neighbours are measured against."""
    mean: Vector | None
    """(d,), subtracted before scoring; None without centring."""
    log_prior: Vector
    scorer: Scorer
    pool_mean: Vector | None = None
    """(d,), the collection's mean where it was known, whether or not the scores are centred: novelty is."""
    support_hashes: tuple[str, ...] = ()
    """Content hashes of the supports, or none: the same picture twice is warned of again after an update."""
    ledger: Ledger | None = None
    """The sums over all examples, for a head that keeps only part of them; None where it keeps all, or cannot be
    updated."""

    @property
    def example_ids(self) -> tuple[str, ...]:
        """The ids of the examples it was trained on, as far as it knows them: at least the supports'."""
        return self.ledger.ids if self.ledger else self.support_ids

    @property
    def temperature(self) -> float:
        """Divides the logits before the softmax."""
        return self.metrics.temperature

    @property
    def threshold(self) -> float:
        """The novelty above which a vector is unknown."""
        return self.rejection.threshold

    @property
    def support_labels(self) -> tuple[str, ...]:
        """The labels of the supports, in the order of `support_ids`."""
        return tuple(self.classes[c] for c in self.support_classes)

    def predict(self, X: ArrayLike, *, reject: bool = True, neighbours: int = 3) -> list[Prediction]:
        """Classify vectors (m, d), float32 or float64, of any length but zero.

        With reject=False `label` is always the best class. Raises InvalidArgument for vectors of another
        dimension, not finite or all zeros.
        """
        predictions: list[Prediction] = []
        for shares, novelties, similarities, Z in self._chunks(X):
            spreads = self._spreads(Z, shares)
            count = max(0, min(neighbours, similarities.shape[1]))
            # A stable sort of what argpartition found: ties come in the order of the supports.
            nearest = np.sort(np.argpartition(-similarities, max(count - 1, 0), axis=1)[:, :count], axis=1)
            order = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1, kind="stable")
            nearest = np.take_along_axis(nearest, order, axis=1)
            for share, far, row, near, spread in zip(shares, novelties, similarities, nearest, spreads, strict=True):
                best = int(share.argmax())
                unknown = reject and far > self.threshold
                predictions.append(
                    Prediction(
                        label=None if unknown else self.classes[best],
                        best=self.classes[best],
                        score=float(share[best]),
                        probabilities=share,
                        novelty=float(far),
                        threshold=self.threshold,
                        neighbours=tuple(
                            Neighbour(self.support_ids[i], self.classes[self.support_classes[i]], float(row[i]))
                            for i in near
                        ),
                        spread=spread,
                    )
                )
        return predictions

    def _spreads(self, Z: Matrix, shares: Matrix) -> list[float] | list[None]:
        rows, best = np.arange(len(Z)), shares.argmax(axis=1)
        members = [
            probabilities(logits, self.temperature, self.log_prior)[rows, best]
            for logits in self.scorer.member_logits(Z)
        ]
        return [float(spread) for spread in np.std(members, axis=0)] if members else [None] * len(Z)

    def scores(self, X: ArrayLike) -> tuple[Matrix, Vector]:
        """Return the probabilities (m, C) and the novelties (m,) of vectors (m, d), as `predict` does."""
        parts = [(shares, novelties) for shares, novelties, *_ in self._chunks(X)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _chunks(self, X: ArrayLike) -> Iterator[tuple[Matrix, Vector, NDArray[np.float32], Matrix]]:
        """Yield probabilities, novelties, similarities to the supports and the rows in the scoring space."""
        checked = check_vectors(X, dim=self.dim)
        for start in range(0, len(checked), _CHUNK):
            plain = unit_rows(checked[start : start + _CHUNK])
            similarities = plain.astype(np.float32) @ self.supports.T
            Z = plain if self.mean is None else unit_rows(plain, self.mean)
            shares = probabilities(self.scorer.logits(Z, similarities), self.temperature, self.log_prior)
            yield shares, self.rejection.novelty(plain, similarities), similarities, Z

    def to_bytes(self) -> bytes:
        """Return the arrays, as safetensors. With `meta()` they are the whole head."""
        from likewise_server.heads.serialize import to_bytes  # noqa: PLC0415

        return to_bytes(self)

    def meta(self) -> dict[str, object]:
        """Return everything else, as JSON values."""
        from likewise_server.heads.serialize import to_meta  # noqa: PLC0415

        return to_meta(self)

    @classmethod
    def from_bytes(cls, blob: bytes, meta: Mapping[str, object]) -> TrainedHead:
        """Build the head again from `to_bytes()` and `meta()`: it predicts the same bits.

        Raises FailedPrecondition for what no version known here has written.
        """
        from likewise_server.heads.serialize import restore  # noqa: PLC0415

        return restore(blob, meta)
