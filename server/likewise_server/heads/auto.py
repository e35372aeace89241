"""Choosing a kind: by cross-validation where there are three of each class, else by rule. It says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads import registry
from likewise_server.heads.base import unit_rows
from likewise_server.heads.validate import k_fold, stratified

if TYPE_CHECKING:
    from likewise_server.heads.base import Problem, Vector

FOLDS = 3
# kNN is the weakest head on few examples (Meta-Dataset, arXiv:1903.03096), so it enters only with many.
MIN_KNN = 10
# A logistic regression is 40 fits: past this many numbers it takes minutes where the others take seconds.
MAX_LOGREG = 50_000_000


Candidate = tuple[str, bool]


@dataclass(frozen=True)
class Choice:
    """A kind, whether to subtract the mean, and why."""

    kind: str
    center: bool
    reason: str


def choose(problem: Problem, mean: Vector | None) -> Choice:
    """Choose for a problem of unit rows that are not centred, given the collection's mean (d,) if known."""
    options, counts = problem.options, problem.counts
    # With two examples or fewer centring can only be decided beforehand: docs/heads.md has the figures.
    center = mean is not None and options.center is not False
    if problem.n_classes == 1:
        return Choice("ncm", bool(options.center), "ncm: with one class every kind accepts and rejects alike")
    if np.median(counts) < 2:  # noqa: PLR2004
        return Choice("ncm", center, f"ncm{_centred(center)}: most classes have one example, too few to compare")
    if counts.min() < FOLDS:
        return Choice(
            "ridge",
            center,
            f"ridge{_centred(center)}: a class has under {FOLDS} examples, too few to compare",
        )
    return _by_cross_validation(problem, mean)


def _by_cross_validation(problem: Problem, mean: Vector | None) -> Choice:
    options, part = problem.options, problem.take(_affordable(problem))
    spaces = {False: part} if options.center is not True else {}
    if mean is not None and options.center is not False:
        spaces[True] = replace(part, Z=unit_rows(part.Z, mean))
    skipped = []
    candidates = [(kind, center) for kind in ("ncm", "ridge") for center in spaces]
    if problem.Z.size * problem.n_classes <= MAX_LOGREG:
        candidates += [("logreg", center) for center in spaces]
    else:
        skipped.append("logreg, for its cost")
    if part.counts.min() >= MIN_KNN and False in spaces:
        candidates.append(("knn", False))
    right = {}
    for name, center in candidates:
        kind, space = registry.load(name), spaces[center]
        held = k_fold(kind, space.fixing(kind.fit(space).chosen), FOLDS)
        weights = space.weights[held.rows]
        right[name, center] = weights * (held.logits.argmax(axis=1) == space.y[held.rows])
    best = _best(candidates, right)
    listed = ", ".join(f"{name}{_centred(c)} {_percent(right[name, c])}" for name, c in candidates)
    how = f"{FOLDS}-fold cross-validation on {len(part.y)} examples ({listed})"
    why = "none is clearly better" if best[0] == "ridge" else "clearly better than ridge"
    reason = f"{best[0]}{_centred(best[1])}: {why} by {how}"
    if skipped:
        reason += f"; not tried: {', '.join(skipped)}"
    return Choice(*best, reason)


def _best(candidates: list[Candidate], right: dict[Candidate, Vector]) -> Candidate:
    """Return ridge, unless others are better by over a standard error of the paired difference: their best.

    Picking whatever scores highest on a few dozen rows follows chance: it did worse than always ridge.
    """
    default = next(candidate for candidate in candidates if candidate[0] == "ridge")
    clear = [default]
    for candidate in candidates:
        difference = right[candidate] - right[default]
        if difference.sum() > np.sqrt(np.square(difference).sum()) + 1e-9:
            clear.append(candidate)
    if len(clear) == 1:
        return default
    # max() returns the first of equals, and the candidates stand from simple to elaborate.
    return max(clear[1:], key=lambda candidate: round(float(right[candidate].sum()), 9))


def _percent(right: Vector) -> str:
    return f"{100 * right.mean():.1f} %"


def _affordable(problem: Problem) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return stratified(problem.y, np.arange(len(problem.y)), 5000, problem.options.seed)


def _centred(center: bool) -> str:
    return " (centred)" if center else ""
