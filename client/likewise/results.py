"""What comes back: plain values with NumPy arrays, no messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise.errors import LikewiseError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds the server spent per stage; `total_ms` is its wall clock."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0
    store_ms: float = 0.0
    head_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors` (n, dim) float32, one row per image in order; a row whose index is in `errors` is zero."""

    vectors: Float32
    errors: dict[int, LikewiseError]
    fingerprint: str
    backbone: str
    timings: list[Timings] = field(default_factory=list)  # one per request made


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: "created", "updated", "unchanged", or "failed" with its `error`."""

    id: str
    status: str
    error: LikewiseError | None = None


class Outcomes(list[Outcome]):
    """One outcome per item, in order."""

    @property
    def errors(self) -> dict[str, LikewiseError]:
        """The failed items, by id."""
        return {outcome.id: outcome.error for outcome in self if outcome.error}

    def count(self, status: Any) -> int:
        """Return how many items have a status ("created", "updated", "unchanged", "failed")."""
        return sum(outcome.status == status for outcome in self)

    def raise_for_errors(self) -> None:
        """Raise the first error, if any item failed."""
        for outcome in self:
            if outcome.error:
                raise outcome.error


@dataclass(frozen=True, slots=True)
class Item:
    """A stored item; `vector` (dim,) float32 only where it was asked for."""

    id: str
    label: str | None
    attributes: dict[str, Any]
    uri: str
    content_hash: str
    updated_at: float  # Unix seconds
    vector: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A found item. `score`: larger is nearer (cosine, inner product, or minus the Euclidean distance)."""

    id: str
    score: float
    label: str | None
    attributes: dict[str, Any]
    uri: str


class Hits(list[Hit]):
    """The hits of one query, best first, and how they were found."""

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        *,
        exact: bool = True,
        measured_recall: float | None = None,
        scanned: int = 0,
        filtered_count: int | None = None,
        error: LikewiseError | None = None,
        timings: Timings | None = None,
    ) -> None:
        super().__init__(hits)
        self.exact = exact
        self.measured_recall = measured_recall
        self.scanned = scanned
        self.filtered_count = filtered_count
        self.error = error
        self.timings = timings or Timings()


@dataclass(frozen=True, slots=True)
class HeadMetrics:
    """Cross-validated on the training items; None where there were too few, and `note` says why."""

    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    chance: float
    items: int
    held_out: int
    method: str
    false_reject_rate: float | None
    unknown_accept_rate: float | None
    temperature: float
    note: str


@dataclass(frozen=True, slots=True)
class Head:
    """A trained head: what `train_head` made, and what `auto` chose and why."""

    name: str
    version: int
    kind: str
    collection: str
    fingerprint: str
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    metrics: HeadMetrics
    reason: str
    warnings: tuple[str, ...]
    options: dict[str, Any]
    created_at: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training item near the query: its id, label and cosine similarity."""

    id: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer. `label` is None for "unknown"; `best` is the likeliest class all the same.

    `error` is set, and `best` empty, where the query itself could not be read.
    """

    label: str | None
    best: str
    score: float
    probabilities: dict[str, float]
    novelty: float
    threshold: float
    neighbours: tuple[Neighbour, ...]
    head_version: int
    fingerprint: str
    error: LikewiseError | None = None


@dataclass(frozen=True, slots=True)
class ClassReport:
    """Precision, recall, F1 and number of items of one class."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a head did on labelled items.

    `confusion` (C + 1, C + 1): true class by answer; last row: classes the head does not know;
    last column: answered "unknown". `rejection_curve`: (share answered, accuracy among those).
    """

    version: int
    items: int
    known_items: int
    training_items: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    macro_f1: float | None
    ece: float | None
    false_reject_rate: float | None
    unknown_accept_rate: float | None
    classes: tuple[ClassReport, ...]
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    rejection_curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as the server describes it. `backbone` is "" for vectors from elsewhere."""

    name: str
    count: int
    dim: int
    metric: str
    backbone: str
    fingerprint: str
    created_at: float  # Unix seconds
    bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found and set right."""

    items_checked: int
    problems: tuple[str, ...]
    repaired: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """A backbone the server serves (`served`), or could; the rest is empty if it is not served."""

    name: str
    served: bool
    fingerprint: str
    dim: int
    device: str
    precision: str
    layers: tuple[str, ...]
    input_size: int
    execution: str  # "eager", "compiling" (eager until done) or "compiled"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one message may hold."""

    max_message_bytes: int
    max_items: int
    max_image_bytes: int
    max_pixels: int
    max_k: int
    stream_window: int
    max_hits: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers."""

    version: str
    default_backbone: str
    device: str
    uptime_s: float
    limits: Limits
