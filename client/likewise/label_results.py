"""What comes back from the calls about labels, and how it is made of messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from likewise import convert
from likewise.head_results import HeadMetrics
from likewise.results import Timings
from likewise_proto.v1 import head_pb2 as hpb


@dataclass(frozen=True, slots=True)
class Relabelled:
    """How many items had another label before, and the ids that are not in the collection."""

    changed: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DoubtfulLabel:
    """A label that a head trained without the item disagrees with, and the probabilities of both."""

    id: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    uri: str


@dataclass(frozen=True, slots=True)
class LabelNext:
    """An unlabelled item whose label would tell much.

    `reason`: "typical", like many that have no label, or "uncertain", between two classes. `guess` is "" where
    there is no head to guess.
    """

    id: str
    guess: str
    score: float
    reason: str
    uri: str


@dataclass(frozen=True, slots=True)
class ConfusedClasses:
    """How many items with `label` are taken for another class, and their share of the items with the label."""

    label: str
    taken_for: str
    items: int
    share: float


@dataclass(frozen=True, slots=True)
class LabelReview:
    """What a review found: the surest doubts, the first to label and the most frequent confusions come first.

    `metrics`: the accuracy to expect of a head of this `kind`; None where nothing is labelled.
    """

    doubtful: tuple[DoubtfulLabel, ...]
    next: tuple[LabelNext, ...]
    confused: tuple[ConfusedClasses, ...]
    kind: str
    metrics: HeadMetrics | None
    labelled: int
    unlabelled: int
    warnings: tuple[str, ...]
    timings: Timings


@dataclass(frozen=True, slots=True)
class SelectedItem:
    """What is to become of a labelled item, and why it is not kept (or could not be judged).

    `label_probability`: by a head trained without it. `nearness`: mean cosine to the nearest target items.
    """

    id: str
    label: str
    kept: bool
    reason: str
    label_probability: float
    nearness: float


class Selection(list[SelectedItem]):
    """One entry per labelled item, by id."""

    @property
    def ids(self) -> list[str]:
        """The ids of those kept, as `train_head(ids=…)` takes them."""
        return [item.id for item in self if item.kept]


@dataclass(frozen=True, slots=True)
class PseudoLabelled:
    """What a head said of an unlabelled item; `taken`: it has this label now (in a dry run: it would get it)."""

    id: str
    label: str
    score: float
    novelty: float
    taken: bool
    reason: str


class PseudoLabels(list[PseudoLabelled]):
    """One entry per unlabelled item, by id; `version` is the head's."""

    def __init__(self, items: Iterable[PseudoLabelled] = (), *, version: int = 0) -> None:
        super().__init__(items)
        self.version = version

    @property
    def taken(self) -> list[PseudoLabelled]:
        """Those that were labelled."""
        return [item for item in self if item.taken]


def review(message: hpb.ReviewLabelsResponse) -> LabelReview:
    """Return what a review found."""
    return LabelReview(
        doubtful=tuple(
            DoubtfulLabel(m.id, m.label, m.suggested, m.label_probability, m.suggested_probability, m.uri)
            for m in message.doubtful
        ),
        next=tuple(LabelNext(m.id, m.guess, m.score, m.reason, m.uri) for m in message.next),
        confused=tuple(ConfusedClasses(m.label, m.taken_for, m.items, m.share) for m in message.confused),
        kind=message.kind,
        metrics=convert.head_metrics(message.metrics) if message.HasField("metrics") else None,
        labelled=message.labelled,
        unlabelled=message.unlabelled,
        warnings=tuple(message.warnings),
        timings=convert.timings(message.timings),
    )


def selected(message: hpb.SelectedItem) -> SelectedItem:
    """Return what is to become of one item."""
    return SelectedItem(
        message.id, message.label, message.kept, message.reason, message.label_probability, message.nearness
    )


def pseudo_labelled(message: hpb.PseudoLabelled) -> PseudoLabelled:
    """Return what a head said of one item."""
    return PseudoLabelled(message.id, message.label, message.score, message.novelty, message.taken, message.reason)
