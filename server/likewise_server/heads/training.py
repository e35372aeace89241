"""Training, from labelled vectors to a head: check, choose, fit, calibrate, measure, set the threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads import auto, registry
from likewise_server.heads.base import Problem, unit_rows
from likewise_server.heads.calibration import fit_temperature
from likewise_server.heads.head import Metrics, TrainedHead
from likewise_server.heads.inputs import (
    check_blocks,
    check_hashes,
    check_ids,
    check_labels,
    check_mean,
    check_vectors,
    label_warnings,
)
from likewise_server.heads.moments import Ledger, Moments, id_keys, row_hashes
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.rejection import fit_rejection
from likewise_server.heads.validate import lowest, wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Fit, Rows, Vector
    from likewise_server.heads.rejection import Rejection

# Kinds that do not vote with their supports need them for novelty and neighbours only: this many serve.
MAX_SUPPORTS = 5000
# Centring spreads the cosines: the fixed temperatures, measured without it, grow by this (docs/heads.md).
CENTRED_SPREAD = 2.5


def train(
    vectors: ArrayLike,
    labels: Sequence[str],
    ids: Sequence[str],
    *,
    kind: str = "auto",
    options: Mapping[str, object] | None = None,
    pool_mean: ArrayLike | None = None,
    content_hashes: Sequence[str] = (),
    blocks: Sequence[int] = (),
) -> TrainedHead:
    """Train a head on vectors (n, d), float32 or float64 of any length but zero, with n labels and n ids.

    The order of the rows does not matter. pool_mean (d,) is the mean of the collection's unit vectors; it is
    used, and kept, only where the head is centred. content_hashes (n, or none) tell that two examples are
    the same picture; without them equal vectors do. blocks are the widths of the parts, where a vector is
    several backbones' features side by side: an ensemble gives each part members of its own.

    Raises InvalidArgument for vectors that are not finite, all zeros or of the wrong shape, for empty labels,
    repeated ids, an unknown kind or option, for `center` without a pool_mean, and for blocks that are not the vectors'
    width in sum.
    """
    settings = HeadOptions.parse(kind, options or {})
    X = check_vectors(vectors)
    labels, ids = check_labels(labels, len(X)), check_ids(ids, len(X))
    widths = check_blocks(blocks, X.shape[1])
    mean = check_mean(pool_mean, X.shape[1])
    if settings.center and mean is None:
        raise InvalidArgument("option 'center' needs the collection's mean: train on a collection")
    check_hashes(content_hashes, len(X))
    hashes = content_hashes or [""] * len(X)
    return train_examples(
        Examples.of(unit_rows(X).astype(np.float32), labels, ids, hashes), kind, settings, mean, widths
    )


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled unit rows (n, d), with content hashes where known and "" where not, in order of id.

    In that order everything is the same, to the bit, however the examples came. The rows are rounded to what a
    head keeps of them, so that it can be trained again from what it keeps.
    """

    rows: NDArray[np.float32]
    labels: list[str]
    ids: list[str]
    hashes: list[str]

    @classmethod
    def of(
        cls, rows: NDArray[np.float32], labels: Sequence[str], ids: Sequence[str], hashes: Sequence[str]
    ) -> Examples:
        """Put the examples in order."""
        return cls(rows, list(labels), list(ids), list(hashes)).take(sorted(range(len(ids)), key=ids.__getitem__))

    def take(self, which: Sequence[int] | Rows) -> Examples:
        """Return these examples, in the order given."""
        labels, ids, hashes = ([column[i] for i in which] for column in (self.labels, self.ids, self.hashes))
        return Examples(self.rows[np.asarray(which, dtype=np.intp)], labels, ids, hashes)

    def plus(self, more: Examples) -> Examples:
        """Return these examples and more, in order."""
        rows = np.concatenate([self.rows, more.rows])
        return Examples.of(rows, self.labels + more.labels, self.ids + more.ids, self.hashes + more.hashes)


def numbered(labels: Sequence[str]) -> tuple[tuple[str, ...], Rows]:
    """Return the classes, sorted, and each label's number among them, (n,)."""
    classes = tuple(sorted(set(labels)))
    number = {label: i for i, label in enumerate(classes)}
    return classes, np.array([number[label] for label in labels], dtype=np.intp)


def train_examples(
    examples: Examples, kind: str, settings: HeadOptions, mean: Vector | None, blocks: tuple[int, ...] = ()
) -> TrainedHead:
    """Train on checked examples. The mean, (d,), is used only where the head is centred."""
    classes, y = numbered(examples.labels)
    plain = Problem(unit_rows(examples.rows), y, len(classes), settings, blocks=blocks)
    choice = auto.choose(plain, mean) if kind == "auto" else auto.Choice(kind, bool(settings.center), "")
    pool = mean
    if not choice.center:
        mean = None
    problem = plain if mean is None else replace(plain, Z=unit_rows(examples.rows, mean))
    method = registry.load(choice.kind)

    everything, counts = np.arange(len(y)), problem.counts
    kept = everything if method.votes else keep(examples.ids, y, counts, settings.seed)
    pictures = _pictures(examples)
    suspicious = label_warnings(examples.labels, pictures, examples.ids)
    draft = Draft(choice.kind, classes, counts, settings, mean, pool, suspicious)
    # Past what a head keeps of its rows, sums over all of them let it be updated.
    weighted = settings.class_weight is not None and "class_weight" in method.options
    if len(kept) < len(y) and method.fit_moments is not None and not weighted:
        moments, sample = Moments.of(problem, gram=method.gram), problem.take(kept)
        ledger = Ledger(moments, tuple(examples.ids), y.astype(np.int32), row_hashes(examples.rows))
        head = draft.finish(examples.take(kept), sample, method.fit_moments(moments, sample), ledger)
    else:
        head = draft.finish(examples.take(kept), problem, method.fit(problem), None)
    return replace(head, reason=choice.reason)


def keep(ids: Sequence[str], y: Rows, counts: Rows, seed: int) -> Rows:
    """Return the rows to keep of those at hand, of classes y (n,): all of them up to MAX_SUPPORTS.

    counts (C,) are the sizes of the classes that they stand for.
    """
    if counts.sum() <= MAX_SUPPORTS:
        return np.arange(len(y))
    return lowest(y, id_keys(ids, seed), counts, MAX_SUPPORTS)


def _pictures(examples: Examples) -> list[str | int]:
    """Return what is equal where two examples are the same picture: a bare vector has no content hash."""
    if all(examples.hashes):
        return list(examples.hashes)
    return [known or int(row) for known, row in zip(examples.hashes, row_hashes(examples.rows), strict=True)]


@dataclass(frozen=True, eq=False)
class Draft:
    """What is known of a head before it is fitted; counts (C,) are of all its examples."""

    kind: str
    classes: tuple[str, ...]
    counts: Rows
    settings: HeadOptions
    mean: Vector | None
    """(d,), subtracted before scoring."""
    pool: Vector | None
    """(d,), the collection's, where it is known."""
    warnings: tuple[str, ...]

    def finish(self, kept: Examples, problem: Problem, fit: Fit, ledger: Ledger | None) -> TrainedHead:
        """Calibrate, measure and set the threshold; of the examples `kept` stay with the head.

        `problem` is what to measure on: all examples, or with a ledger those that were kept.
        """
        n, warnings = int(self.counts.sum()), list(self.warnings)
        if len(kept.ids) < n:
            warnings.append(f"novelty and neighbours use a stratified {len(kept.ids)} of the {n} examples")
        support_classes = numbered(kept.labels)[1]
        cap, seed = self.settings.max_false_reject, self.settings.seed
        rejection = fit_rejection(kept.rows, support_classes, cap, seed, self.pool)
        return TrainedHead(
            kind=self.kind,
            classes=self.classes,
            dim=kept.rows.shape[1],
            metrics=self._measure(problem, fit, rejection),
            rejection=rejection,
            options=self.settings.given(),
            chosen=fit.chosen,
            reason="",
            warnings=(*warnings, *fit.warnings, *([rejection.warning] if rejection.warning else [])),
            support_ids=tuple(kept.ids),
            support_classes=support_classes.astype(np.int32),
            supports=kept.rows,
            mean=self.mean,
            pool_mean=self.pool,
            log_prior=_log_prior(self.settings, self.classes),
            scorer=fit.scorer,
            support_hashes=tuple(kept.hashes) if any(kept.hashes) else (),
            ledger=ledger,
        )

    def _measure(self, problem: Problem, fit: Fit, rejection: Rejection) -> Metrics:
        """Hold out what can be held out; from the same logits come the accuracy and the temperature."""
        method, counts = registry.load(self.kind), self.counts
        n, note, folds, how = int(counts.sum()), "", 0, ""
        accuracy = low = high = None
        n_held_out, temperature = 0, method.one_shot_temperature * (CENTRED_SPREAD if self.mean is not None else 1.0)
        if len(self.classes) == 1:
            note = "with one class there is nothing to tell apart"
        elif counts.max() == 1:
            note = "no class has two examples, so none can be held out; probabilities use a fixed temperature"
        else:
            held = fit.held_out or method.held_out(problem.fixing(fit.chosen))
            truth = problem.y[held.rows]
            hits = int((held.logits.argmax(axis=1) == truth).sum())
            n_held_out, folds, how = len(truth), held.n_folds, held.method
            accuracy, (low, high) = hits / n_held_out, wilson(hits, n_held_out)
            temperature = fit_temperature(held, truth)
            if n_held_out < n:
                note = f"measured on {n_held_out} of {n} examples"
        return Metrics(
            accuracy=accuracy,
            accuracy_low=low,
            accuracy_high=high,
            chance=float(counts.max() / n),
            n=n,
            n_held_out=n_held_out,
            n_folds=folds,
            method=how,
            per_class={label: int(count) for label, count in zip(self.classes, counts, strict=True)},
            temperature=self.settings.temperature or temperature,
            false_reject_rate=rejection.false_reject_rate,
            unknown_accept_rate=rejection.unknown_accept_rate,
            note=note,
        )


def _log_prior(options: HeadOptions, classes: tuple[str, ...]) -> Vector:
    """(C,). InvalidArgument unless the prior names the classes, all and only."""
    if options.prior is None:
        return np.zeros(len(classes))
    if wrong := sorted(set(classes) ^ set(options.prior)):
        raise InvalidArgument(f"option 'prior' must give every class a weight, and no other: look at {wrong[0]!r}")
    return np.log([options.prior[label] for label in classes])
