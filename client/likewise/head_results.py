"""What comes back of heads: what they are, what they predict, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise.errors import LikewiseError


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
