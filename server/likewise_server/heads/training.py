"""Training, from labelled vectors to a head: check, choose, fit, calibrate, measure, set the threshold."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads import auto, registry
from likewise_server.heads.base import Problem, holdable, unit_rows
from likewise_server.heads.calibration import fit_temperature
from likewise_server.heads.head import Metrics, TrainedHead
from likewise_server.heads.inputs import check_ids, check_labels, check_mean, check_vectors, label_warnings
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.rejection import fit_rejection
from likewise_server.heads.validate import stratified, wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from likewise_server.heads.base import Fit, Kind, Vector
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
) -> TrainedHead:
    """Train a head on vectors (n, d), float32 or float64 of any length but zero, with n labels and n ids.

    The order of the rows does not matter. pool_mean (d,) is the mean of the collection's unit vectors; it is
    used, and kept, only where the head is centred. content_hashes (n, or none) tell that two examples are
    the same picture; without them equal vectors do.

    Raises InvalidArgument for vectors that are not finite, all zeros or of the wrong shape, for empty labels,
    repeated ids, an unknown kind or option, and for `center` without a pool_mean.
    """
    settings = HeadOptions.parse(kind, options or {})
    X = check_vectors(vectors)
    labels, ids = check_labels(labels, len(X)), check_ids(ids, len(X))
    mean = check_mean(pool_mean, X.shape[1])
    if settings.center and mean is None:
        raise InvalidArgument("option 'center' needs the collection's mean: train on a collection")
    if len(content_hashes) not in {0, len(X)}:
        raise InvalidArgument(f"{len(X)} vectors came with {len(content_hashes)} content hashes: give all or none")

    # In order of id everything below is the same, to the bit, however the rows came.
    order = sorted(range(len(X)), key=ids.__getitem__)
    X, labels, ids = X[order], [labels[i] for i in order], [ids[i] for i in order]
    hashes = [content_hashes[i] for i in order] if content_hashes else [""] * len(X)
    pictures = [known or row.tobytes() for known, row in zip(hashes, X, strict=True)]  # bare vectors have no hash
    warnings = list(label_warnings(labels, pictures, ids))
    classes = tuple(sorted(set(labels)))
    number = {label: i for i, label in enumerate(classes)}
    y = np.array([number[label] for label in labels], dtype=np.intp)

    plain = Problem(unit_rows(X), y, len(classes), settings)
    choice = auto.choose(plain, mean) if kind == "auto" else auto.Choice(kind, bool(settings.center), "")
    if not choice.center:
        mean = None
    problem = plain if mean is None else dataclasses.replace(plain, Z=unit_rows(plain.Z, mean))
    method = registry.load(choice.kind)
    fit = method.fit(problem)

    rows = np.arange(len(y))
    kept = rows if choice.kind == "knn" else stratified(y, rows, MAX_SUPPORTS, settings.seed)
    if len(kept) < len(rows):
        warnings.append(f"novelty and neighbours use a stratified {len(kept)} of the {len(rows)} examples")
    supports = plain.Z[kept].astype(np.float32)
    rejection = fit_rejection(supports, y[kept], settings.max_false_reject, settings.seed)
    metrics = _measure(method, fit, problem, classes, rejection, centred=mean is not None)
    return TrainedHead(
        kind=choice.kind,
        classes=classes,
        dim=X.shape[1],
        metrics=metrics,
        rejection=rejection,
        options=settings.given(),
        chosen=fit.chosen,
        reason=choice.reason,
        warnings=(*warnings, *fit.warnings, *([rejection.warning] if rejection.warning else [])),
        support_ids=tuple(ids[i] for i in kept),
        support_classes=y[kept].astype(np.int32),
        supports=supports,
        mean=mean,
        log_prior=_log_prior(settings, classes),
        scorer=fit.scorer,
    )


def _measure(
    method: Kind, fit: Fit, problem: Problem, classes: tuple[str, ...], rejection: Rejection, *, centred: bool
) -> Metrics:
    """Hold out what can be held out; from the same logits come the accuracy and the temperature."""
    counts = problem.counts
    note, folds, how = "", 0, ""
    accuracy = low = high = None
    n_held_out, temperature = 0, method.one_shot_temperature * (CENTRED_SPREAD if centred else 1.0)
    if len(classes) == 1:
        note = "with one class there is nothing to tell apart"
    elif not len(holdable(problem)):
        note = "no class has two examples, so none can be held out; probabilities use a fixed temperature"
    else:
        held = fit.held_out or method.held_out(problem.fixing(fit.chosen))
        truth = problem.y[held.rows]
        hits = int((held.logits.argmax(axis=1) == truth).sum())
        n_held_out, folds, how = len(truth), held.n_folds, held.method
        accuracy, (low, high) = hits / n_held_out, wilson(hits, n_held_out)
        temperature = fit_temperature(held, truth)
        if n_held_out < len(problem.y):
            note = f"measured on {n_held_out} of {len(problem.y)} examples"
    return Metrics(
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        chance=float(counts.max() / counts.sum()),
        n=len(problem.y),
        n_held_out=n_held_out,
        n_folds=folds,
        method=how,
        per_class={label: int(count) for label, count in zip(classes, counts, strict=True)},
        temperature=problem.options.temperature or temperature,
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
