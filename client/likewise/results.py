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
