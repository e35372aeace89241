"""From a source, which has labels, to a target, which the head will meet: adapted training, and what to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likewise_server.engine.samples import Sample, has_direction, in_time, sample
from likewise_server.errors import FailedPrecondition, InvalidArgument, OutOfRange
from likewise_server.heads import TrainedHead, train
from likewise_server.heads.adaptation import MIN_TARGET, Gain, adapter, paired_gain
from likewise_server.heads.judging import judge
from likewise_server.heads.selecting import select
from likewise_server.store.filters import parse
from likewise_server.store.types import CollectionInfo, Float32, Store

TARGET_MOST = 20_000  # items that stand for a target: its mean and covariance need no more
SOURCE_MOST = 100_000  # labelled items that are judged at once
PART = 1000  # items told of at once
KEEP = 0.5

Fit = Callable[[ArrayLike, NDArray[np.floating] | None], TrainedHead]
"""Trains on vectors (n, dim), given the mean (dim,) of the pool that queries come from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Adaptation:
    """How to carry a head over, and where to: a collection of the same space ("": the one trained on)."""

    method: str
    target: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
    """What is to become of one labelled item; `reason` says why it is not kept, or could not be judged."""

    id: str
    label: str
    kept: bool
    reason: str
    label_probability: float
    nearness: float


def train_adapted(
    store: Store,
    info: CollectionInfo,
    how: Adaptation,
    vectors: Float32,
    ids: Sequence[str],
    fit: Fit,
    mean: NDArray[np.floating] | None,
    deadline: float | None,
) -> tuple[TrainedHead, dict[str, Any]]:
    """Train on vectors (n, dim) mapped onto the target; return the head and the report that is kept with it. Blocks.

    Training items that belong to the target stay as they are. Where the target has labels that the head knows, a
    second head, without the adaptation, is trained to compare with.
    Raises what `adapter` raises, NotFound, and FailedPrecondition for another space and where nothing is left to map.
    """
    other, target = _target(store, info, how.target, how.where, deadline, asked=frozenset(ids))
    own = target.members if other.name == info.name else frozenset()
    moving = np.array([item_id not in own for item_id in ids], dtype=np.bool_)
    if not moving.any():
        raise FailedPrecondition(
            "all training items are items of the target, so there is nothing to adapt: name another target, "
            "or say with where and target_where which items are which"
        )
    if len(target.items) < MIN_TARGET:
        raise FailedPrecondition(
            f"{other.name!r} has {len(target.items)} items that stand for the target, an adaptation needs "
            f"{MIN_TARGET}: add pictures like those that the head will see, labelled or not"
        )
    move = adapter(how.method, vectors[moving], target.vectors)
    mapped = np.array(vectors, dtype=np.float64)
    mapped[moving] = move(vectors[moving])
    head = fit(mapped, move.b)
    report: dict[str, Any] = {
        "method": how.method,
        "target": other.name,
        "target_where": how.where,
        "source_items": int(moving.sum()),
        "target_items": len(target.items),
        "measured_items": 0,
    }
    measured = [row for row, item in enumerate(target.items) if item.label in head.classes and item.id not in own]
    if not measured:
        return _warned(head, _unmeasured(how, other, target, own)), report
    in_time(deadline)
    truth = [target.items[row].label for row in measured]
    before, after = (_right(each, target.vectors[measured], truth) for each in (fit(vectors, mean), head))
    gain = paired_gain(before, after)
    report |= {
        "measured_items": len(measured),
        "accuracy_before": gain.before,
        "accuracy_after": gain.after,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }
    return _warned(head, _doubt(how, gain, len(measured))), report


def _target(
    store: Store,
    info: CollectionInfo,
    name: str,
    where: str,
    deadline: float | None,
    *,
    asked: frozenset[str] = frozenset(),
) -> tuple[CollectionInfo, Sample]:
    """Return the target's collection and items. Raises FailedPrecondition for another space."""
    other = store.get_collection(name or info.name)
    if other.name == info.name and not where.strip():
        raise InvalidArgument(
            "the target is this collection itself: name another, or say with target_where which items"
        )
    if other.fingerprint != info.fingerprint:
        raise FailedPrecondition(
            f"target {other.name!r} is of space {other.fingerprint}, {info.name!r} of space {info.fingerprint}: "
            "embed the target's pictures with the same backbone"
        )
    return other, sample(store, other.name, where, TARGET_MOST, deadline, asked=asked)


def _right(head: TrainedHead, vectors: Float32, truth: Sequence[str | None]) -> list[bool]:
    shares, _ = head.scores(vectors)
    return [head.classes[best] == label for best, label in zip(shares.argmax(axis=1).tolist(), truth, strict=True)]


def _unmeasured(how: Adaptation, other: CollectionInfo, target: Sample, own: frozenset[str]) -> str:
    which = " that it was not trained on" if own else ""
    return (
        f"whether adaptation by {how.method} helps is not known: of the {len(target.items)} target items in "
        f"{other.name!r} none{which} has a label that the head knows; label a few"
    )


def _doubt(how: Adaptation, gain: Gain, count: int) -> str:
    if gain.low > 0:
        return ""
    figures = f"{100 * gain.before:.1f} % before, {100 * gain.after:.1f} % after, on {count} labelled target items"
    if gain.high < 0:
        return f"adaptation by {how.method} makes it worse ({figures}): train without it"
    return f"adaptation by {how.method} does not clearly help ({figures}): compare with a head without it"


def _warned(head: TrainedHead, warning: str) -> TrainedHead:
    return dataclasses.replace(head, warnings=(*head.warnings, warning)) if warning else head


def select_source(
    store: Store,
    collection: str,
    *,
    where: str = "",
    target: str = "",
    target_where: str = "",
    keep: float = KEEP,
    kind: str = "auto",
    deadline: float | None = None,
) -> Iterator[list[Selected]]:
    """Yield what to do with each labelled item, in parts, by id; an empty part first, before the long work. Blocks.

    Raises NotFound, InvalidArgument (share, kind, filter), FailedPrecondition (space, nothing labelled, an empty
    target) and OutOfRange for over SOURCE_MOST labelled items.
    """
    if not 0 < keep <= 1:  # here as well as in `select`, before the long work
        raise InvalidArgument(f"keep is {keep:g}: give the share to keep, over 0 and up to 1")
    info = store.get_collection(collection)
    parse(where)
    yield []
    found = store.labelled(collection, where=where)
    if not found.ids:
        raise FailedPrecondition(f"{collection!r} has no labelled items that match: label some first")
    if len(found.ids) > SOURCE_MOST:
        raise OutOfRange(f"{len(found.ids)} labelled items match, the limit is {SOURCE_MOST}: narrow it with where")
    other, wanted = _target(store, info, target, target_where, deadline)
    if not wanted.items:
        raise FailedPrecondition(f"{other.name!r} has no items that match to stand for the target: add some")
    sound = np.flatnonzero(has_direction(found.vectors))
    vectors, labels = found.vectors[sound], [found.labels[i] for i in sound]
    mean = store.mean_vector(collection)
    head = train(
        vectors,
        labels,
        [found.ids[i] for i in sound],
        kind=kind or "auto",
        pool_mean=mean if np.any(mean) else None,
        content_hashes=[found.content_hashes[i] for i in sound],
    )
    in_time(deadline)
    judged = judge(head, vectors, labels)
    in_time(deadline)
    chosen = select(judged, vectors, wanted.vectors, keep)
    answers, own, rows = judged.answers, judged.own, set(judged.rows.tolist())
    told = {
        i: Selected(found.ids[i], found.labels[i], False, "its vector is zero and has no direction", 0.0, 0.0)
        for i in range(len(found.ids))
    }
    for row, i in enumerate(sound.tolist()):
        kept, reason = bool(chosen.kept[row]), ""
        if row not in rows:
            reason = "not judged: there is no other item of its class, or no other class"
        elif chosen.wrong[row]:
            reason = f"looks like {judged.classes[answers[row]]!r} to a head trained without it"
        if not kept and not chosen.wrong[row]:
            reason = "farther from the target than those kept of its class"
        told[i] = Selected(found.ids[i], found.labels[i], kept, reason, float(own[row]), float(chosen.nearness[row]))
    ordered = sorted(told.values(), key=lambda each: each.id)
    for start in range(0, len(ordered), PART):
        yield ordered[start : start + PART]
