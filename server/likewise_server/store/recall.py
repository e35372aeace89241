"""How hard an approximate index must be searched to find what an exact search finds: tried, and measured.

Queries are taken from the stored vectors, or are real ones where some were kept. Half of them choose the
operating point, the other half measure it; a stored vector's own row does not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.store import exact
from likewise_server.store.approximate import Approximation, Point
from likewise_server.store.parts import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from likewise_server.store.parts import Part
    from likewise_server.store.types import Float32, Int64, Metric

KS = (10, 30, 100, 300, 1000)
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_CANDIDATES = 8_192  # of a query, so that deep searches are tuned in the time that shallow ones take
MOST_NEIGHBOURS = 40_000  # looked for in all, for the same reason
MARGIN = 0.3  # of what the target leaves, by which the choosing half must do better
LEAST_ROWS_PER_NEIGHBOUR = 10
NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Questions:
    """`queries` `(n, d)` searchable; `own` `(n,)` their own positions, -1 for those of no row."""

    queries: Float32
    own: Int64

    def part(self, number: int) -> Questions:
        """Return every other question."""
        return Questions(self.queries[number::2], self.own[number::2])


def truth(part: Part, questions: Questions, k: int, metric: Metric, say: Callable[[float], None]) -> Int64:
    """Return the positions `(n, k)` of the nearest rows, nearest first, each question's own row left out."""
    queries = questions.queries
    best = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(part), BLOCK):
        scores = exact.scores_of(part, slice(start, start + BLOCK), queries, metric)
        at = np.arange(start, start + scores.shape[1])
        here = (questions.own >= start) & (questions.own < start + BLOCK)
        scores[here, questions.own[here] - start] = -np.inf
        best, found = exact.merged(best, found, scores, np.broadcast_to(at, scores.shape), k)
        say((start + len(at)) / len(part))
    return np.take_along_axis(found, np.argsort(-best, axis=1), axis=1)


def tune(
    approximation: Approximation,
    part: Part,
    questions: Questions,
    metric: Metric,
    target: float,
    say: Callable[[float], None],
) -> list[Point]:
    """Return the quickest operating point that reaches the target for each k, as far as there is one."""
    if len(part) < 2:  # noqa: PLR2004  # one row has no neighbours
        return []
    ks = [k for k in KS if k * LEAST_ROWS_PER_NEIGHBOUR <= len(part)] or [min(KS[0], len(part) - 1)]
    true = truth(part, questions, ks[-1], metric, lambda done: say(0.6 * done))
    points = []
    for number, k in enumerate(ks):
        few = slice(0, max(40, MOST_NEIGHBOURS // k))
        asked = Questions(questions.queries[few], questions.own[few])
        point = _point(approximation, part, asked, true[few, :k], metric, target)
        say(0.6 + 0.4 * (number + 1) / len(ks))
        if point is None:
            break
        points.append(point)
    return points


def confirmed(
    approximation: Approximation, part: Part, questions: Questions, metric: Metric, target: float
) -> list[Point]:
    """Return an index's operating points with their recall on these rows, moved until they reach the target.

    From the first one that cannot, or that asks for too large a share of so few rows, they are left out.
    """
    points = [point for point in approximation.points if point.k * LEAST_ROWS_PER_NEIGHBOUR <= len(part)]
    if not points:
        return []
    true = truth(part, questions, points[-1].k, metric, lambda _: None)
    found = []
    for point in points:
        measured = _measured(approximation, part, questions, true[:, : point.k], point, target)
        if measured is None:
            break
        found.append(measured)
    return found


def _point(
    approximation: Approximation, part: Part, questions: Questions, true: Int64, metric: Metric, target: float
) -> Point | None:
    k = true.shape[1]
    choosing, measuring = questions.part(0), questions.part(1)
    goal = target + MARGIN * (1 - target)
    found = _reaching(approximation, choosing, true[0::2], goal, len(part))
    if not found:
        return None
    options = [Point(k=k, effort=effort, factor=factor, recall=0) for factor, effort in found.items()]
    chosen = min(options, key=lambda option: _seconds(approximation, part, choosing, option, metric))
    return _measured(approximation, part, measuring, true[1::2], chosen, target)


def _measured(
    approximation: Approximation, part: Part, questions: Questions, true: Int64, point: Point, target: float
) -> Point | None:
    """Return a point with its recall on these questions, moved until that is the target; None if it cannot be."""
    k, efforts = point.k, approximation.efforts()
    while True:
        ranks = _ranks(approximation, questions, true, point.effort, min(k * point.factor, len(part)))
        recall = float((ranks != NOWHERE).mean())
        if recall >= target:
            return point.model_copy(update={"recall": round(recall, 5)})
        harder = [effort for effort in efforts if effort > point.effort]
        if harder:
            point = point.model_copy(update={"effort": harder[0]})
        elif wider := [factor for factor in _factors(k) if factor > point.factor]:
            point = point.model_copy(update={"factor": wider[0]})
        else:
            return None


def _reaching(
    approximation: Approximation, questions: Questions, true: Int64, goal: float, rows: int
) -> dict[int, int]:
    """Return factors that reach the goal, each with its least effort; none for which a smaller one needs no more."""
    k = true.shape[1]
    factors = _factors(k)
    found: dict[int, int] = {}
    efforts = approximation.efforts()
    for effort, following in pairwise([*efforts, None]):
        assert effort is not None  # noqa: S101  # only what follows the last is
        ranks = _ranks(approximation, questions, true, effort, min(k * factors[-1], rows))
        enough = [factor for factor in factors if float((ranks < k * factor).mean()) >= goal]
        if enough and enough[0] < min(found, default=NOWHERE):
            found[enough[0]] = effort
        if following is None or (found and effort >= 4 * found[max(found)]):
            break
    return found


def _factors(k: int) -> list[int]:
    """Return the factors worth trying for `k`, least first."""
    return [factor for factor in FACTORS if factor == 1 or k * factor <= MOST_CANDIDATES]


def _ranks(approximation: Approximation, questions: Questions, true: Int64, effort: int, count: int) -> Int64:
    """Return for each true neighbour `(n, k)` at which place among `count` candidates it is, or NOWHERE."""
    candidates = approximation.candidates(questions.queries, count, effort)
    ranks = np.full(true.shape, NOWHERE)
    for row, (wanted, given) in enumerate(zip(true, candidates, strict=True)):
        order = np.argsort(given, kind="stable")
        at = np.minimum(np.searchsorted(given[order], wanted), len(given) - 1)
        there = given[order][at] == wanted
        ranks[row, there] = order[at][there]
    return ranks


def _seconds(approximation: Approximation, part: Part, questions: Questions, point: Point, metric: Metric) -> float:
    """Return the shortest of three times that all questions take."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        approximation.search(part, questions.queries, point.k, point, metric, None)
        times.append(time.perf_counter() - began)
    return min(times)
