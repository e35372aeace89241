"""Labels of stored items: set by hand, reviewed by a head, or given by one that is sure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from likewise_server.engine.classification import StoredHead
from likewise_server.engine.samples import Sample, has_direction, in_time, matrix, pages, sample
from likewise_server.engine.timings import Timings
from likewise_server.engine.wheres import both
from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError, NotFound
from likewise_server.heads import Metrics, Prediction, TrainedHead, train
from likewise_server.heads.choosing import Choice, choose
from likewise_server.heads.judging import Judged, confusions, doubts, judge
from likewise_server.store.filters import parse
from likewise_server.store.types import Attributes, CollectionInfo, Item, NewLabel, Outcome, Store

LABELLED, UNLABELLED = "label is not null", "label is null"
MOST_JUDGED, MOST_CHOSEN_FROM = 10_000, 5_000  # items that a review looks at; it says so where there are more
ERRORS, NEXT, CONFUSED = 50, 20, 50  # told of where nobody said how many; confused pairs always
MIN_SCORE = 0.9
SOURCE, SCORE = "label_source", "label_score"
"""Attributes that say which head gave a label, and how sure it was. They go when the label is set by hand."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """An item whose label a head trained without it disagrees with, and the two probabilities."""

    item: Item
    suggested: str
    label_probability: float
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Next:
    """An item to label, the head's guess ("" without a head), its probability, and why it is worth a label."""

    item: Item
    guess: str
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class Confused:
    """How many items with one label are taken for another, and which share of those with the label they are."""

    label: str
    taken_for: str
    items: int
    share: float


@dataclass(slots=True)
class Review:
    """What a review found. `metrics` are None where nothing is labelled; `labelled` and `unlabelled` count all."""

    doubtful: list[Doubtful] = field(default_factory=list)
    next: list[Next] = field(default_factory=list)
    confused: list[Confused] = field(default_factory=list)
    kind: str = ""
    metrics: Metrics | None = None
    labelled: int = 0
    unlabelled: int = 0
    warnings: list[str] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Pseudo:
    """What a head says of an unlabelled item, whether it was labelled so, and if not, why."""

    id: str
    label: str
    score: float
    novelty: float
    taken: bool
    reason: str


def set_labels(store: Store, collection: str, labels: Sequence[tuple[str, str | None]]) -> tuple[int, list[str]]:
    """Label stored items by hand, None takes a label away; return how many changed, and the ids that are not there.

    What a head noted beside the label it gave goes with that label. Durable on return.
    Raises NotFound, and InvalidArgument or OutOfRange, with nothing written, for a label that none can have.
    """
    if empty := [item_id for item_id, label in labels if label == ""]:
        raise InvalidArgument(f"the label of {empty[0]!r} is empty: leave it unset to take the label away")
    unsaid: Attributes = {SOURCE: None, SCORE: None}
    outcomes = store.relabel(collection, [NewLabel(item_id, label, unsaid) for item_id, label in labels])
    pairs = list(zip((item_id for item_id, _ in labels), outcomes, strict=True))
    changed = {item_id for item_id, outcome in pairs if outcome is Outcome.UPDATED}
    missing = dict.fromkeys(item_id for item_id, outcome in pairs if isinstance(outcome, NotFound))
    return len(changed), list(missing)


def review(
    store: Store,
    collection: str,
    *,
    where: str = "",
    errors: int = 0,
    count: int = 0,
    kind: str = "",
    deadline: float | None = None,
) -> Review:
    """Look for labels that are likely wrong, `count` items worth labelling next, and confused classes. Blocks.

    `errors` and `count` of 0 are ERRORS and NEXT. Raises NotFound and InvalidArgument (filter, kind).
    """
    parse(where)
    found = Review()
    with found.timings.stage("store"):
        known = sample(store, collection, both(where, LABELLED), MOST_JUDGED, deadline)
        pool = sample(store, collection, both(where, UNLABELLED), MOST_CHOSEN_FROM, deadline)
        mean = store.mean_vector(collection)
    found.labelled, found.unlabelled = known.total, pool.total
    for what, drawn in (("labelled", known), ("unlabelled", pool)):
        if len(drawn.items) < drawn.total:
            found.warnings.append(f"{len(drawn.items)} of the {drawn.total} {what} items were looked at")
    with found.timings.stage("head"):
        head = None
        if known.items:
            head = _trained(known, kind, mean if np.any(mean) else None)
            in_time(deadline)
            _doubt(found, judge(head, known.vectors, [item.label or "" for item in known.items]), known, errors)
            found.kind, found.metrics = head.kind, head.metrics
            found.warnings += head.warnings
        else:
            found.warnings.append("nothing is labelled yet: label the items listed first, they are typical ones")
        in_time(deadline)
        if pool.items:
            found.next = _worth_labelling(head, pool, known, count or NEXT)
    return found


def _trained(known: Sample, kind: str, mean: np.ndarray[tuple[int], np.dtype[np.float32]] | None) -> TrainedHead:
    return train(
        known.vectors,
        [item.label or "" for item in known.items],
        [item.id for item in known.items],
        kind=kind or "auto",
        pool_mean=mean,
        content_hashes=[item.content_hash for item in known.items],
    )


def _doubt(found: Review, judged: Judged, known: Sample, errors: int) -> None:
    classes, own = judged.classes, judged.own
    if alone := len(judged.y) - len(judged.rows):
        found.warnings.append(
            f"{alone} labels cannot be doubted: there is no other item of their class to compare with"
        )
    for each in doubts(judged)[: errors or ERRORS]:
        share = float(judged.probabilities[each.row, each.suggested])
        found.doubtful.append(Doubtful(known.items[each.row], classes[each.suggested], float(own[each.row]), share))
    found.confused = [
        Confused(classes[each.label], classes[each.taken_for], each.rows, each.share)
        for each in confusions(judged)[:CONFUSED]
    ]


def _worth_labelling(head: TrainedHead | None, pool: Sample, known: Sample, count: int) -> list[Next]:
    shares = head.scores(pool.vectors)[0] if head else None
    chosen: list[Choice] = choose(pool.vectors, known.vectors, shares, count)
    found = list[Next]()
    for each in chosen:
        guess, score = "", 0.0
        if head and shares is not None:
            best = int(shares[each.row].argmax())
            guess, score = head.classes[best], float(shares[each.row, best])
        found.append(Next(pool.items[each.row], guess, score, each.reason))
    return found


def pseudo_label(
    store: Store,
    collection: str,
    stored: StoredHead,
    *,
    where: str = "",
    min_score: float = MIN_SCORE,
    max_per_class: int = 0,
    dry_run: bool = False,
    deadline: float | None = None,
) -> Iterator[list[Pseudo]]:
    """Yield what a head says of the unlabelled items, page by page, by id, labelling those it is sure of. Blocks.

    Sure is: not unknown, at least `min_score`, and with `max_per_class` among the surest so many of its class, for
    which all items are read twice. An empty page comes first, and for each page of the first reading: nothing else is
    kept in memory. Each page is written before it is told of, and an item only if it still is, in the same
    transaction, what was read: who labels or changes it meanwhile wins.

    Raises NotFound, InvalidArgument (score, filter), FailedPrecondition (space) and DeadlineExceeded; what was
    told of until then stays done.
    """
    if not 0 <= min_score <= 1:  # NaN too
        raise InvalidArgument(f"min_score is {min_score:g}: give a probability, 0 to 1")
    info = store.get_collection(collection)
    parse(where)
    if info.fingerprint != stored.info.fingerprint:
        raise FailedPrecondition(
            f"head {stored.row.name!r} is of space {stored.info.fingerprint}, {collection!r} of space "
            f"{info.fingerprint}: it cannot label these items"
        )
    yield []
    labelling = _Labelling(store, info, stored, both(where, UNLABELLED), min_score, deadline)
    surest: set[str] | None = None
    if max_per_class:
        best: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for page in labelling.pages():
            for each in page:
                if each.taken:
                    best[each.label].append((-each.score, each.id))
            for label, found in best.items():
                best[label] = sorted(found)[:max_per_class]
            yield []
        surest = {item_id for found in best.values() for _, item_id in found}
    for page in labelling.pages(surest, max_per_class, write=not dry_run):
        yield page


class _Labelling:
    """One head over the unlabelled items of a collection."""

    def __init__(
        self,
        store: Store,
        info: CollectionInfo,
        stored: StoredHead,
        where: str,
        min_score: float,
        deadline: float | None,
    ) -> None:
        self._store = store
        self._info = info
        self._head = stored.head
        self._source = f"head {stored.row.name} v{stored.row.version} of {stored.info.name}"
        self._where = where
        self._min_score = min_score
        self._deadline = deadline

    def pages(self, surest: set[str] | None = None, most: int = 0, *, write: bool = False) -> Iterator[list[Pseudo]]:
        """Yield what is said of each page's items; with `write`, after labelling those that are taken."""
        for items in pages(self._store, self._info.name, self._where, self._deadline, vectors=True):
            told = self._told(items, surest, most)
            yield self._written(items, told) if write else told

    def _told(self, items: Sequence[Item], surest: set[str] | None, most: int) -> list[Pseudo]:
        rows = matrix(items, self._info.dim)
        sound = has_direction(rows)
        answers = iter(self._head.predict(rows[sound], neighbours=0) if sound.any() else [])
        told = list[Pseudo]()
        for item, good in zip(items, sound.tolist(), strict=True):
            if not good:
                told.append(Pseudo(item.id, "", 0.0, 0.0, False, "its vector is zero and has no direction"))
                continue
            answer = next(answers)
            reason = self._objection(answer)
            if not reason and surest is not None and item.id not in surest:
                reason = f"not among the surest {most} of its class"
            told.append(Pseudo(item.id, answer.best, answer.score, answer.novelty, not reason, reason))
        return told

    def _objection(self, answer: Prediction) -> str:
        if answer.label is None:
            return f"unknown: its novelty of {answer.novelty:.3f} is over the threshold of {answer.threshold:.3f}"
        if answer.score < self._min_score:
            return f"its score of {answer.score:.3f} is under {self._min_score:g}"
        return ""

    def _written(self, items: Sequence[Item], told: Sequence[Pseudo]) -> list[Pseudo]:
        taken = [(item, each) for item, each in zip(items, told, strict=True) if each.taken]
        labels = [
            NewLabel(item.id, each.label, {SOURCE: self._source, SCORE: round(each.score, 6)}, as_read=item)
            for item, each in taken
        ]
        refused: Mapping[str, str] = {
            each.id: outcome.message
            for (_, each), outcome in zip(taken, self._store.relabel(self._info.name, labels), strict=True)
            if isinstance(outcome, LikewiseError)
        }
        return [
            Pseudo(each.id, each.label, each.score, each.novelty, False, refused[each.id])
            if each.id in refused
            else each
            for each in told
        ]
