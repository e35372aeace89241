"""Choosing a kind: by rule where examples are few, by cross-validation from ten of each class. It says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads import registry
from likewise_server.heads.base import unit_rows
from likewise_server.heads.calibration import fit_temperature, probabilities
from likewise_server.heads.validate import k_fold, stratified

if TYPE_CHECKING:
    from likewise_server.heads.base import Problem, Rows, Vector

FOLDS = 3
# With fewer of a class a comparison follows chance: what it picked was worse than always lda (docs/heads.md). And
# kNN is the weakest head on few examples (Meta-Dataset, arXiv:1903.03096), so it enters only with many.
MIN_COMPARED = 10
# In standard errors of the paired difference. There are up to nine candidates: one error is passed by luck.
CLEARLY = 2.0
# Numbers in the rows compared, and what a logistic regression's forty fits take: a second or two.
MAX_NUMBERS = 1_000_000
MAX_LOGREG = 10_000_000
# Kinds in the order in which they are preferred where they do equally well: from simple to elaborate.
COMPARED = ("ncm", "lda", "ridge", "logreg")


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
        return Choice("ridge", center, f"ridge{_centred(center)}: most classes have one example, too few to compare")
    if np.median(counts) < FOLDS:
        return Choice("lda", center, f"lda{_centred(center)}: most classes have two examples, too few to compare")
    if counts.min() < MIN_COMPARED:
        center = bool(options.center)
        few = f"a class has under {MIN_COMPARED} examples, too few to compare"
        return Choice("lda", center, f"lda{_centred(center)}: {few}")
    return _by_cross_validation(problem, mean)


def _by_cross_validation(problem: Problem, mean: Vector | None) -> Choice:
    options, part = problem.options, problem.take(_affordable(problem))
    spaces = {False: part} if options.center is not True else {}
    if mean is not None and options.center is not False:
        spaces[True] = replace(part, Z=unit_rows(part.Z, mean))
    skipped, kinds = [], list(COMPARED)
    if part.Z.size * problem.n_classes > MAX_LOGREG:
        kinds.remove("logreg")
        skipped.append("logreg, for its cost")
    candidates = [(kind, center) for kind in kinds for center in spaces]
    if False in spaces:
        candidates.append(("knn", False))
    tried = {candidate: _held_out(candidate[0], spaces[candidate[1]]) for candidate in candidates}
    best = _best({candidate: one.gains for candidate, one in tried.items()})
    listed = ", ".join(f"{name}{_centred(c)} {one.loss:.3f} and {one.accuracy:.1%}" for (name, c), one in tried.items())
    how = f"by {FOLDS}-fold cross-validation on {len(part.y)} examples (log loss and accuracy: {listed})"
    why = "no other has a clearly smaller loss" if best[0] == "lda" else "clearly smaller loss than lda"
    reason = f"{best[0]}{_centred(best[1])}: {why} {how}"
    if skipped:
        reason += f"; not tried: {', '.join(skipped)}"
    return Choice(*best, reason)


@dataclass(frozen=True, eq=False)
class _Tried:
    """How a candidate did on rows (r,) held out."""

    gains: Vector
    """The logarithm of the calibrated probability of each row's class, times its weight."""
    loss: float
    accuracy: float


def _held_out(name: str, space: Problem) -> _Tried:
    kind = registry.load(name)
    held = k_fold(kind, space.fixing(kind.fit(space).chosen), FOLDS)
    truth, weights = space.y[held.rows], space.weights[held.rows]
    temperature = fit_temperature(held, truth)
    shares = probabilities(held.logits, temperature, np.zeros(space.n_classes))[np.arange(len(truth)), truth]
    gains = weights * np.log(np.maximum(shares, np.finfo(float).tiny))
    right = weights * (held.logits.argmax(axis=1) == truth)
    return _Tried(gains, float(-gains.mean()), float(right.sum() / weights.sum()))


def _best(gains: dict[Candidate, Vector]) -> Candidate:
    """Return lda, unless others are better by over two standard errors of the paired difference: their best.

    By log loss, which a few dozen rows show more surely than the share of right answers. Taking whatever has the
    least follows chance: it did worse than always lda.
    """
    default = next(candidate for candidate in gains if candidate[0] == "lda")
    clear = []
    for candidate, own in gains.items():
        difference = own - gains[default]
        if difference.sum() > CLEARLY * difference.std(ddof=1) * np.sqrt(len(difference)) + 1e-9:
            clear.append(candidate)
    # max() returns the first of equals, and the candidates stand from simple to elaborate.
    return max(clear, key=lambda candidate: round(float(gains[candidate].sum()), 9), default=default)


def _affordable(problem: Problem) -> Rows:
    limit = max(FOLDS * problem.n_classes, MAX_NUMBERS // problem.Z.shape[1])
    return stratified(problem.y, np.arange(len(problem.y)), limit, problem.options.seed)


def _centred(center: bool) -> str:
    return " (centred)" if center else ""
