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


@dataclass(frozen=True, slots=True)
class Group:
    """Hits that have `value` (text, a number, true or false) in common, best first."""

    value: str | float | bool
    hits: tuple[Hit, ...]


class Hits(list[Hit]):
    """The hits of one query, best first, and how they were found.

    Of a search with `group_by`, `groups` are the groups in order of their best hits, and the list has the hits of
    one after the other. Of one with `ids_only`, hits have an id and a score and nothing else.
    """

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
        groups: Iterable[Group] = (),
    ) -> None:
        super().__init__(hits)
        self.exact = exact
        self.measured_recall = measured_recall
        self.scanned = scanned
        self.filtered_count = filtered_count
        self.error = error
        self.timings = timings or Timings()
        self.groups = tuple(groups)


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Items that are linked by pairs that reach the score, by id; each one's `score` is that to the first.

    An item may be linked to another of the group only, and its own score be lower.
    """

    items: tuple[Hit, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its items."""
        return tuple(item.id for item in self.items)


class Duplicates(list[DuplicateGroup]):
    """Groups of near-duplicates, the largest first, and how they were found.

    `items` were searched for, at `min_score`. Unless `exact`, an approximate index with `measured_recall` was
    searched and pairs may be missing; they may as well where `truncated`, the number of items with more neighbours
    than were looked at, is not 0.
    """

    def __init__(
        self,
        groups: Iterable[DuplicateGroup] = (),
        *,
        items: int = 0,
        min_score: float = 0.0,
        exact: bool = True,
        measured_recall: float | None = None,
        truncated: int = 0,
    ) -> None:
        super().__init__(groups)
        self.items = items
        self.min_score = min_score
        self.exact = exact
        self.measured_recall = measured_recall
        self.truncated = truncated

    @property
    def spare(self) -> int:
        """How many items could go if one of each group stayed."""
        return sum(len(group.items) - 1 for group in self)


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
class AdaptationReport:
    """What an adaptation did, on those target items that have a label the head knows.

    Accuracies, and the 95 % interval of their paired difference; None where `measured_items` is 0.
    """

    method: str
    source_items: int
    target_items: int
    measured_items: int
    accuracy_before: float | None
    accuracy_after: float | None
    gain_low: float | None
    gain_high: float | None


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
    adaptation: AdaptationReport | None = None


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
class ReliabilityBin:
    """Items whose score lies in one of fifteen equal ranges: their mean score, and the share that was right."""

    score: float
    accuracy: float
    items: int


@dataclass(frozen=True, slots=True)
class ConfusedItem:
    """An item with `label` that was answered with another class; `score` is that answer's probability."""

    id: str
    label: str
    answer: str
    score: float
    uri: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a head did on labelled items.

    `confusion` (C + 1, C + 1): true class by answer; last row: classes the head does not know;
    last column: answered "unknown". `rejection_curve`: (share answered, accuracy among those).
    `reliability`: of the known items, without empty ranges. `rejection_auroc`: the chance that an item of a class
    the head does not know is more novel than a known one, None unless there are both. `mistakes`: the surest
    wrong answers, at most 50.
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
    reliability: tuple[ReliabilityBin, ...] = ()
    rejection_auroc: float | None = None
    mistakes: tuple[ConfusedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexState:
    """How a collection is searched now.

    `kind` is "exact", or the FAISS factory of an approximate segment of `rows` rows, which was measured to find the
    share `measured_recall` of the true neighbours at `operating_point`; `delta` rows are compared one by one beside
    it. `building` names the step of a build under way, of which `progress`, 0 to 1, is done.
    """

    kind: str = "exact"
    rows: int = 0
    delta: int = 0
    measured_recall: float | None = None
    operating_point: str = ""
    building: str = ""
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as the server describes it. `backbone` is "" for vectors from elsewhere.

    `index`, `indexed` and `storage` are what was asked for, `state` is what is.
    """

    name: str
    count: int
    dim: int
    metric: str
    backbone: str
    fingerprint: str
    created_at: float  # Unix seconds
    bytes: dict[str, int]  # by part
    index: str = "auto"
    indexed: tuple[str, ...] = ()
    storage: str = "fp32"
    state: IndexState = field(default_factory=IndexState)


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
