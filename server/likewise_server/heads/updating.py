"""Updating: a head with examples added and forgotten, as if it had been trained on the changed set.

While a head keeps all its rows they are all it takes: a closed form is solved again from them. Past that it keeps
sums over all rows, to which examples are added and from which they are taken (see moments.py); then accuracy,
temperature and threshold are measured on the rows it keeps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise_server.heads import registry
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.inputs import check_hashes, check_ids, check_labels, check_vectors, label_warnings
from likewise_server.heads.moments import Ledger, row_hashes
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.training import Draft, Examples, keep, numbered, train_examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Vector
    from likewise_server.heads.head import TrainedHead

_NAMED = 3


def update(
    head: TrainedHead,
    vectors: ArrayLike,
    labels: Sequence[str],
    ids: Sequence[str],
    *,
    remove: Sequence[str] = (),
    removed: Mapping[str, ArrayLike] | None = None,
    content_hashes: Sequence[str] = (),
) -> TrainedHead:
    """Return the head with examples added, vectors (m, d) with m labels and ids, and those in `remove` forgotten.

    m may be 0. An id that the head has is replaced. `removed` gives the vectors (d,) of forgotten examples that are
    no supports, which only a head of more examples than it keeps has need of. Options, mean and kind stay as they
    are; hyperparameters are chosen again.

    Raises FailedPrecondition for a kind without a closed form, for a head that keeps too little to be updated, for a
    vector in `removed` that is not the one trained on, where nothing would be left and where the head's prior does
    not fit the new classes; NotFound for an id to forget that the head does not have; InvalidArgument for what
    `train` would refuse, and for an id both added and removed.
    """
    new = _checked(head, vectors, labels, ids, content_hashes)
    examples = dict(zip(head.example_ids, _labels(head), strict=True))
    if missing := sorted(set(remove) - set(examples)):
        raise NotFound(f"the head was not trained on {_some(missing)}: remove only ids that it was")
    if both := sorted(set(remove) & set(new.ids)):
        raise InvalidArgument(f"{_some(both)} would be added and removed: give each id once")
    going = sorted(set(examples) & {*remove, *new.ids})
    for one in going:
        del examples[one]
    if not examples and not new.ids:
        raise FailedPrecondition("no example would be left: delete the head instead")
    settings = HeadOptions(**dict(head.options))  # type: ignore[arg-type]
    if settings.prior is not None and set(settings.prior) != {*examples.values(), *new.labels}:
        raise FailedPrecondition("the classes change and the head's option 'prior' names the old ones: train it again")
    supports = _supports(head)
    held = supports.take([i for i, one in enumerate(supports.ids) if one in examples])
    if head.ledger is None or len(held.ids) == len(examples):
        centred = replace(settings, center=head.mean is not None)
        changed = train_examples(held.plus(new), head.kind, centred, _pool(head))
    else:
        rows = _rows_of(going, head.ledger, supports.plus(new), removed or {}, head.dim)
        changed = _by_sums(head, head.ledger, settings, held.plus(new), new, (going, rows))
    return replace(changed, reason=head.reason, options=head.options)


def _checked(
    head: TrainedHead, vectors: ArrayLike, labels: Sequence[str], ids: Sequence[str], hashes: Sequence[str]
) -> Examples:
    """Check that the head can be updated, and what is to be added."""
    if not registry.load(head.kind).updatable:
        able = ", ".join(kind for kind in registry.names() if registry.load(kind).updatable)
        raise FailedPrecondition(
            f"a head of kind {head.kind!r} cannot be updated: train it again on the changed set, or train one of kind "
            f"{able}, which can"
        )
    if head.metrics.n > len(head.example_ids):
        raise FailedPrecondition(
            f"the head keeps {len(head.support_ids)} of its {head.metrics.n} examples and no sums over the others: "
            "train it again on the changed set"
        )
    n = np.shape(vectors)[0] if np.ndim(vectors) else 0
    X = check_vectors(vectors, dim=head.dim) if n else np.empty((0, head.dim))
    check_hashes(hashes, n)
    rows = unit_rows(X).astype(np.float32)
    return Examples.of(rows, check_labels(labels, n), check_ids(ids, n), hashes or [""] * n)


def _labels(head: TrainedHead) -> list[str]:
    """Return the labels of `example_ids`."""
    classes = head.ledger.classes if head.ledger else head.support_classes
    return [head.classes[c] for c in classes]


def _pool(head: TrainedHead) -> Vector | None:
    """Return the collection's mean (d,) as far as the head knows it: older ones keep it only if they are centred."""
    return head.mean if head.pool_mean is None else head.pool_mean


def _supports(head: TrainedHead) -> Examples:
    hashes = list(head.support_hashes) or [""] * len(head.support_ids)
    return Examples(head.supports, list(head.support_labels), list(head.support_ids), hashes)


def _rows_of(
    ids: Sequence[str], ledger: Ledger, at_hand: Examples, given: Mapping[str, ArrayLike], dim: int
) -> NDArray[np.float32]:
    """Return the unit rows (g, d) that the head was trained on under these ids, wherever they can be had."""
    trained = dict(zip(ledger.ids, ledger.hashes, strict=True))
    wanted = set(ids)
    # A replaced support is there twice, and a new vector may be the old one with another label.
    found = {
        one: row
        for one, row in zip(at_hand.ids, at_hand.rows, strict=True)
        if one in wanted and row_hashes(row[None])[0] == trained[one]
    }
    for one in wanted - set(found):
        if one not in given:
            raise FailedPrecondition(
                f"the head keeps no vector of {one!r}, and it is not stored as it was any more: train the head again"
            )
        row = unit_rows(check_vectors(np.asarray(given[one])[None], dim=dim)).astype(np.float32)
        if row_hashes(row)[0] != trained[one]:
            raise FailedPrecondition(f"the vector of {one!r} has changed since: train the head again")
        found[one] = row[0]
    return np.array([found[one] for one in ids], dtype=np.float32).reshape(len(ids), dim)


def _by_sums(
    head: TrainedHead,
    ledger: Ledger,
    settings: HeadOptions,
    at_hand: Examples,
    new: Examples,
    gone: tuple[Sequence[str], NDArray[np.float32]],
) -> TrainedHead:
    """Take the `gone` ids and rows out of the sums, add the new ones, and fit from the sums."""
    method = registry.load(head.kind)
    position = {one: i for i, one in enumerate(ledger.ids)}
    places = np.array([position[one] for one in gone[0]], dtype=np.intp)
    moments = ledger.moments.plus(unit_rows(gone[1], head.mean), ledger.classes[places].astype(np.intp), -1)

    stay = np.delete(np.arange(len(ledger.ids)), places)
    ids = [*(ledger.ids[i] for i in stay), *new.ids]
    labels = [*(head.classes[c] for c in ledger.classes[stay]), *new.labels]
    hashes = np.concatenate([ledger.hashes[stay], row_hashes(new.rows)])
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, labels, hashes = [ids[i] for i in order], [labels[i] for i in order], hashes[order]
    classes, y = numbered(labels)
    number = {label: i for i, label in enumerate(classes)}
    moments = moments.reclass(np.array([number.get(label, -1) for label in head.classes]), len(classes))
    moments = moments.plus(unit_rows(new.rows, head.mean), np.array([number[t] for t in new.labels], dtype=np.intp), 1)

    if lost := sorted(set(classes) - set(at_hand.labels)):
        raise FailedPrecondition(f"no example that the head keeps of {_some(lost)} is left: train it again")
    y_held = np.array([number[label] for label in at_hand.labels], dtype=np.intp)
    kept = at_hand.take(keep(at_hand.ids, y_held, moments.counts, settings.seed))
    sample = Problem(unit_rows(kept.rows, head.mean), numbered(kept.labels)[1], len(classes), settings)
    warnings = label_warnings(labels, hashes.tolist(), ids)
    assert method.fit_moments is not None  # noqa: S101  (it made the ledger)
    draft = Draft(head.kind, classes, moments.counts, settings, head.mean, _pool(head), warnings)
    new_ledger = Ledger(moments, tuple(ids), y.astype(np.int32), hashes)
    return draft.finish(kept, sample, method.fit_moments(moments, sample), new_ledger)


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:_NAMED]))
    return listed if len(names) <= _NAMED else f"{listed} and {len(names) - _NAMED} more"
