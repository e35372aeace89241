"""Several linear heads that answer together.

average: heads of several kinds, or one for each of several backbones whose features stand side by side.
bagging: ridge on bootstrap samples of every class (Breiman, 1996). boosting: ridge on examples that gain weight when
their class is missed (SAMME; Zhu et al., 2009), judged on left-out rows, since a linear head makes no mistake on few
rows of many dimensions. In all three the members' calibrated log-probabilities are averaged. stacking: logistic
regression on those that held-out rows got (Wolpert, 1992; Ting and Witten, 1999).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument
from likewise_server.heads import registry, ridge
from likewise_server.heads.base import Fit, HeldOut, Kind, Linear, holdable
from likewise_server.heads.calibration import fit_temperature
from likewise_server.heads.logreg import KIND as LOGREG
from likewise_server.heads.validate import k_fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from likewise_server.heads.base import Arrays, Matrix, Problem, Vector

KINDS = ("ridge", "lda", "logreg")
KINDS_OF_A_BLOCK = ("ridge",)
COUNT = 10
FOLDS = 5
# With fewer a class the second level learns the noise of the first.
MIN_STACKED = 10

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Members:
    """M linear heads, each on a span of the dimensions, and how they are combined."""

    linears: tuple[Linear, ...]
    spans: tuple[Span, ...]
    temperatures: Vector
    """(M,): divide each member's logits before the softmax."""
    weights: Vector
    """(M,), summing to 1: of the log-probabilities' mean."""
    mix: Linear | None = None
    """Stacking's second level, on the members' log-probabilities side by side, instead of a mean."""

    def member_logits(self, Z: Matrix) -> Iterable[Matrix]:
        """See Scorer: calibrated log-probabilities."""
        for linear, span, temperature in zip(self.linears, self.spans, self.temperatures, strict=True):
            part = _columns(Z, span)
            yield _log_shares(linear.logits(part, part), float(temperature))

    def logits(self, Z: Matrix, similarities: NDArray[np.floating]) -> Matrix:
        """See Scorer."""
        if self.mix is not None:
            return self.mix.logits(np.hstack(list(self.member_logits(Z))), similarities)
        mean = np.zeros((len(Z), len(self.linears[0].b)))
        for weight, shares in zip(self.weights, self.member_logits(Z), strict=True):
            mean += weight * shares
        return mean

    def arrays(self) -> Arrays:
        """See Scorer. The members' W stand above each other, (Σ of the spans' widths, C)."""
        arrays = {
            "W": np.concatenate([linear.W for linear in self.linears]),
            "b": np.stack([linear.b for linear in self.linears]),
            "spans": np.array(self.spans, dtype=np.float64),
            "temperatures": self.temperatures,
            "weights": self.weights,
        }
        return arrays if self.mix is None else {**arrays, "mix.W": self.mix.W, "mix.b": self.mix.b}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Members:
        """Build again from `arrays()`."""
        spans = tuple((int(start), int(stop)) for start, stop in arrays["spans"])
        ends = np.cumsum([stop - start for start, stop in spans])
        parts = np.split(arrays["W"], ends[:-1])
        linears = tuple(Linear(W, b) for W, b in zip(parts, arrays["b"], strict=True))
        mix = Linear(arrays["mix.W"], arrays["mix.b"]) if "mix.W" in arrays else None
        return cls(linears, spans, arrays["temperatures"], arrays["weights"], mix)


def _columns(Z: Matrix, span: Span) -> Matrix:
    """Return some columns of unit rows, as unit rows again; a row that has nothing there stays nothing."""
    if span == (0, Z.shape[1]):
        return Z
    part = Z[:, span[0] : span[1]]
    length = np.linalg.norm(part, axis=1, keepdims=True)
    return np.asarray(part / np.where(length == 0, 1.0, length), dtype=np.float64)


def _log_shares(logits: Matrix, temperature: float) -> Matrix:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)), dtype=np.float64)


def _mean_weights(n_members: int) -> Vector:
    return np.full(n_members, 1.0 / n_members)


@dataclass(frozen=True, eq=False)
class _Member:
    """A fitted member; `held` where rows could be held out."""

    linear: Linear
    span: Span
    temperature: float
    chosen: Mapping[str, float]
    held: HeldOut | None


def _members(problem: Problem) -> list[_Member]:
    """Fit every kind on every block, or on whole rows where there are no blocks."""
    ends = np.cumsum(problem.blocks or (problem.Z.shape[1],)).tolist()
    names = problem.options.members or (KINDS_OF_A_BLOCK if len(ends) > 1 else KINDS)
    assert isinstance(names, tuple)  # noqa: S101  (the options were checked)
    spans = zip([0, *ends], ends, strict=False)
    return [_member(registry.load(name), problem, span) for span in spans for name in names]


def _member(kind: Kind, problem: Problem, span: Span) -> _Member:
    part = replace(problem, Z=_columns(problem.Z, span), blocks=())
    fit = kind.fit(part)
    assert isinstance(fit.scorer, Linear)  # noqa: S101  (MEMBER_KINDS are)
    held, temperature = None, kind.one_shot_temperature
    if problem.n_classes > 1 and len(holdable(problem)):
        # The same folds for all, so that what they scored can be combined row by row.
        held = k_fold(kind, part.fixing(fit.chosen), FOLDS)
        temperature = fit_temperature(held, problem.y[held.rows])
    return _Member(fit.scorer, span, temperature, fit.chosen, held)


def _gathered(members: Sequence[_Member], mix: Linear | None = None) -> Members:
    return Members(
        tuple(member.linear for member in members),
        tuple(member.span for member in members),
        np.array([member.temperature for member in members]),
        _mean_weights(len(members)),
        mix,
    )


def _chosen(members: Sequence[_Member]) -> dict[str, float]:
    """Return the members' hyperparameters, those that only one member has."""
    times = Counter(name for member in members for name in member.chosen)
    return {name: value for member in members for name, value in member.chosen.items() if times[name] == 1}


def _average(problem: Problem) -> Fit:
    members = _members(problem)
    helds = [(member.held, member.temperature) for member in members if member.held is not None]
    held = None
    if helds:
        mean = np.mean([_log_shares(each.logits, temperature) for each, temperature in helds], axis=0)
        held = replace(helds[0][0], logits=mean)
    return Fit(_gathered(members), _chosen(members), held_out=held)


def _stacking(problem: Problem) -> Fit:
    if problem.n_classes > 1 and problem.counts.min() < MIN_STACKED:
        raise InvalidArgument(
            f"method 'stacking' needs {MIN_STACKED} examples of every class, and one has {problem.counts.min()}: "
            "add examples or use method 'average'"
        )
    members = _members(problem)
    helds = [(member.held, member.temperature) for member in members if member.held is not None]
    if not helds:
        return _average(problem)
    rows, n_folds = helds[0][0].rows, helds[0][0].n_folds
    second = replace(
        problem.take(rows),
        Z=np.hstack([_log_shares(each.logits, temperature) for each, temperature in helds]),
        options=replace(problem.options, C=None),
        blocks=(),
    )
    fit = LOGREG.fit(second)
    assert isinstance(fit.scorer, Linear)  # noqa: S101  (logreg is)
    held = LOGREG.held_out(second.fixing(fit.chosen))
    method = f"{held.method} of what {n_folds} folds scored"
    held = replace(held, rows=rows[held.rows], method=method)
    return Fit(_gathered(members, fit.scorer), _chosen(members), fit.warnings, held)


def _count(problem: Problem) -> int:
    members = problem.options.members
    return members if isinstance(members, int) else COUNT


def _whole(problem: Problem) -> Span:
    return (0, problem.Z.shape[1])


def _bagging(problem: Problem) -> Fit:
    chosen = ridge.fit(problem).chosen
    fixed, rng = problem.fixing(chosen), np.random.default_rng(problem.options.seed)
    by_class, counts = np.argsort(problem.y, kind="stable"), problem.counts
    y = problem.y[by_class]
    first = (np.cumsum(counts) - counts)[y]
    linears: list[Linear] = []
    outside, scored = [], []
    for _ in range(_count(problem)):
        # Each class as often as it is there, so that none is ever lost.
        drawn = by_class[first + (rng.random(len(y)) * counts[y]).astype(np.intp)]
        fit = ridge.fit(fixed.take(drawn))
        assert isinstance(fit.scorer, Linear)  # noqa: S101  (ridge is)
        linears.append(fit.scorer)
        rest = np.setdiff1d(np.arange(len(y)), drawn)
        outside.append(rest)
        scored.append(fit.scorer.logits(problem.Z[rest], problem.Z[rest]))
    temperature, held = ridge.KIND.one_shot_temperature, None
    everywhere = np.concatenate(outside)
    if problem.n_classes > 1 and len(everywhere):
        pooled = HeldOut(np.concatenate(scored), everywhere, len(linears), "out-of-bag")
        temperature = fit_temperature(pooled, problem.y[everywhere])
        held = _out_of_bag(problem, pooled, temperature)
    M = len(linears)
    members = Members(tuple(linears), (_whole(problem),) * M, np.full(M, temperature), _mean_weights(M))
    return Fit(members, chosen, held_out=held)


def _out_of_bag(problem: Problem, pooled: HeldOut, temperature: float) -> HeldOut:
    """Average for each row what the members that had not drawn it scored."""
    total = np.zeros((len(problem.y), problem.n_classes))
    np.add.at(total, pooled.rows, _log_shares(pooled.logits, temperature))
    times = np.bincount(pooled.rows, minlength=len(problem.y))
    rows = np.flatnonzero(times)
    return HeldOut(total[rows] / times[rows, None], rows, pooled.n_folds, pooled.method)


def _boosting(problem: Problem) -> Fit:
    first = ridge.fit(problem)
    rows, K = holdable(problem), problem.n_classes
    assert isinstance(first.scorer, Linear)  # noqa: S101  (ridge is)
    if K == 1 or not len(rows):
        temperature = np.array([ridge.KIND.one_shot_temperature])
        return Fit(Members((first.scorer,), (_whole(problem),), temperature, np.ones(1)), first.chosen)
    fixed, emphasis = problem.fixing(first.chosen), np.ones(len(problem.y))
    linears: list[Linear] = []
    temperatures, votes = [], []
    for _ in range(_count(problem)):
        linear, held = ridge.fit_and_leave_out(replace(fixed, emphasis=emphasis))
        missed = held.logits.argmax(axis=1) != problem.y[rows]
        error = float(emphasis[rows] @ missed / emphasis[rows].sum())
        # As scikit-learn's AdaBoostClassifier does: without a mistake it is done, and no better than chance is no use.
        useless = error >= 1 - 1 / K
        if useless and linears:
            break
        linears.append(linear)
        temperatures.append(fit_temperature(held, problem.y[rows]))
        vote = 1.0 if useless or error == 0 else float(np.log((1 - error) / error) + np.log(K - 1))
        votes.append(vote)
        if useless or error == 0:
            break
        emphasis[rows[missed]] *= np.exp(vote)
        emphasis /= emphasis.mean()
    warnings = () if len(linears) > 1 else ("boosting ended with one member, which is what ridge alone would be",)
    weights = np.array(votes) / np.sum(votes)
    spans = (_whole(problem),) * len(linears)
    return Fit(Members(tuple(linears), spans, np.array(temperatures), weights), first.chosen, warnings)


_METHODS: dict[str, Callable[[Problem], Fit]] = {
    "average": _average,
    "bagging": _bagging,
    "boosting": _boosting,
    "stacking": _stacking,
}


def fit(problem: Problem) -> Fit:
    """Fit the members, calibrate each, and say how to combine them."""
    return _METHODS[problem.options.method](problem)


def held_out(problem: Problem) -> HeldOut:
    """Out-of-fold logits, where fitting has not already found any."""
    return k_fold(KIND, problem, 3)


KIND = Kind(
    "ensemble",
    ("center", "class_weight", "method", "members", "lam", "C", "shrinkage"),
    fit,
    held_out,
    Members.restore,
    one_shot_temperature=1.0,
)
