"""Held-out scores and how sure they are: folds, stratified subsets, Wilson intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import HeldOut, holdable

if TYPE_CHECKING:
    from likewise_server.heads.base import Kind, Problem, Rows

# More held-out rows than this narrow no interval worth having, and cost time that grows with their square.
MAX_HELD_OUT = 5000
_Z95 = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n (Wilson, 1927): honest near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The formula's own ends at 0 and n hits are exact; rounding must not move them past.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def stratified(y: Rows, rows: Rows, limit: int, seed: int) -> Rows:
    """Return at most about `limit` of the rows, sorted, each class in proportion and with at least two."""
    if len(rows) <= limit:
        return rows
    shuffled = np.random.default_rng(seed).permutation(rows)
    rank = _rank_in_class(y[shuffled])
    quota = np.maximum(2, np.bincount(y[rows]) * limit // len(rows))
    return np.sort(shuffled[rank < quota[y[shuffled]]])


def _rank_in_class(y: Rows) -> Rows:
    """For each row, how many of its class come before it."""
    order = np.argsort(y, kind="stable")
    first = np.searchsorted(y[order], y[order])
    rank = np.empty(len(y), dtype=np.intp)
    rank[order] = np.arange(len(y)) - first
    return rank


def fold_numbers(y: Rows, n_folds: int, seed: int) -> Rows:
    """Deal each class over the folds, (n,).

    scikit-learn's StratifiedKFold warns about classes smaller than the number of folds; here the only row of
    a class gets fold -1: it always trains, since without it there is no class.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    fold = np.empty(len(y), dtype=np.intp)
    # Starting each class at another fold keeps the folds of one size where classes are small.
    fold[order] = (_rank_in_class(y[order]) + y[order]) % n_folds
    fold[np.bincount(y)[y] == 1] = -1
    return fold


def k_fold(kind: Kind, problem: Problem, n_folds: int) -> HeldOut:
    """Fit `n_folds` times, each time without one fold, and return what the rows left out scored."""
    seed = problem.options.seed
    part = stratified(problem.y, np.arange(len(problem.y)), MAX_HELD_OUT, seed)
    fold = np.full(len(problem.y), -1)
    fold[part] = fold_numbers(problem.y[part], n_folds, seed)
    rows = np.intersect1d(part[fold[part] >= 0], holdable(problem))
    logits = np.zeros((len(problem.y), problem.n_classes))
    for number in range(n_folds):
        outside = rows[fold[rows] == number]
        if not len(outside):
            continue
        # Without this the class of what is left out looks rarer than it is, and few-shot heads miss it.
        inside = replace(problem.take(part[fold[part] != number]), totals=problem.counts)
        scorer, Z = kind.fit(inside).scorer, problem.Z[outside]
        logits[outside] = scorer.logits(Z, Z @ inside.Z.T)
    return HeldOut(logits[rows], rows, n_folds, f"{n_folds}-fold cross-validation")
