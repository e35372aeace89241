"""Held-out scores and how sure they are: folds, stratified subsets, Wilson intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.heads.base import HeldOut, holdable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from likewise_server.heads.base import Kind, Problem, Rows

# More held-out rows than this narrow no interval worth having, and cost time that grows with their square.
MAX_HELD_OUT = 5000
# The same for leaving out one by one, which costs a product with all others for each, or with all classes.
MAX_LEFT_OUT = 2000
Z95 = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n (Wilson, 1927): honest near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The formula's own ends at 0 and n hits are exact; rounding must not move them past.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def paired_interval(differences: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of the mean of n >= 1 differences, each -1 to 1, between two answers to one row.

    That of Agresti and Min ("Simple improved confidence intervals for comparing matched proportions", 2005): half a
    row is added to each of the four ways in which two answers can be right or wrong, so that it has a width even
    where nothing differs.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values) + 2
    middle = float(values.sum()) / n
    half = Z95 * math.sqrt(max((float((values**2).sum()) + 1) / n - middle**2, 0.0) / n)
    return max(middle - half, -1.0), min(middle + half, 1.0)


def stratified(y: Rows, rows: Rows, limit: int, seed: int) -> Rows:
    """Return at most about `limit` of the rows, sorted, each class in proportion and with at least two."""
    if len(rows) <= limit:
        return rows
    shuffled = np.random.default_rng(seed).permutation(rows)
    return np.sort(shuffled[_within_quota(y[shuffled], np.bincount(y[rows]), limit)])


def lowest(y: Rows, keys: NDArray[np.uint64], counts: Rows, limit: int) -> Rows:
    """Return about `limit` rows, sorted: of each class those with the smallest keys, and at least two.

    counts (C,) are the sizes to be in proportion to. Keys that belong to the examples make the choice the same
    whenever it is made, which lets a sample be kept up as examples come (bottom-k; Cohen and Kaplan, 2007).
    """
    order = np.argsort(keys, kind="stable")
    return np.sort(order[_within_quota(y[order], counts, limit)])


def _within_quota(y: Rows, counts: Rows, limit: int) -> NDArray[np.bool_]:
    quota = np.maximum(2, counts * limit // counts.sum())
    return np.asarray(_rank_in_class(y) < quota[y])


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
    seed, counts = problem.options.seed, problem.counts
    # In more folds than a class has rows, a fold takes from some classes only, which then look rarer than the others.
    n_folds = max(2, min(n_folds, int(np.median(counts[counts > 1])))) if counts.max() > 1 else n_folds
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
        logits[outside] = scorer.logits(Z, Z @ inside.Z.T if kind.votes else np.empty((len(Z), 0)))
    return HeldOut(logits[rows], rows, n_folds, f"{n_folds}-fold cross-validation")
