"""Seconds of training and classifying at sizes where they count, each contestant in turn, medians of rounds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.figures import Ratio, over
from episodes.pictures import Vectors
from episodes.systems import FOLDS, GRID

CLASSES, EACH, DIM = 100, 20, 1280
ITEMS, QUERIES, NEAREST = 10_000, 256, 20
SPREAD = 1.2  # of a class's rows, in units of the distance of its mean from 0
SEED = 5


@dataclass(frozen=True, slots=True)
class Timings:
    """Median seconds by name, and how far from scikit-learn's optimum logreg's loss is."""

    seconds: dict[str, float]
    loss_gap: float

    def ratios(self) -> list[Ratio]:
        """Return what the heads promise, each of two medians of this run."""
        s = self.seconds
        grid = s["sklearn LogisticRegression, grid"]
        return [
            Ratio("ridge, train() / sklearn grid", over(s["ridge, train()"], grid), "≤", 1 / 20),
            Ratio("lda, train() / sklearn grid", over(s["lda, train()"], grid), "≤", 1 / 20),
            Ratio("ridge, fit / sklearn grid", over(s["ridge, fit"], grid), "≤", 1 / 20),
            Ratio("lda, fit / sklearn grid", over(s["lda, fit"], grid), "≤", 1 / 20),
            Ratio("logreg, fit / sklearn grid", over(s["logreg, fit"], grid), "≤", 1 / 3),
            Ratio("knn, classify / bare search", over(s["knn, classify"], s["bare search"]), "≤", 2.0),
            Ratio("logreg, loss over sklearn's optimum", self.loss_gap, "≤", 1e-4),
        ]


def measure(rounds: int, *, quick: bool) -> Timings:
    """Time everything; `quick` with a tenth of the rows."""
    from likewise_server.heads import HeadOptions, registry, train  # noqa: PLC0415
    from likewise_server.heads.base import Problem, unit_rows  # noqa: PLC0415

    each = EACH // 5 if quick else EACH
    rng = np.random.default_rng(SEED)
    X = unit_rows(_drawn(rng, CLASSES, each))
    y = np.repeat(np.arange(CLASSES), each)
    labels, ids = [f"{number:03}" for number in y], [f"{i:05}" for i in range(len(y))]
    problem = Problem(X, y, CLASSES, HeadOptions())
    items = ITEMS // 10 if quick else ITEMS
    pool, asked = unit_rows(_drawn(rng, CLASSES, items // CLASSES)), unit_rows(_drawn(rng, QUERIES, 1))
    votes = train(pool, [f"{i % CLASSES:03}" for i in range(items)], [f"{i:05}" for i in range(items)], kind="knn")
    rows, queries = pool.astype(np.float32), asked.astype(np.float32)
    work: dict[str, Callable[[], object]] = {
        "bare search": lambda: _bare(queries, rows),
        "knn, classify": lambda: votes.predict(asked, neighbours=0),
        "knn, train()": lambda: train(
            pool, [f"{i % CLASSES:03}" for i in range(items)], list(votes.support_ids), kind="knn"
        ),
        **{
            f"{kind}, fit": (lambda kind=kind: registry.load(kind).fit(problem))  # type: ignore[misc]
            for kind in ("ncm", "ridge", "lda", "logreg")
        },
        **{
            f"{kind}, train()": (lambda kind=kind: train(X, labels, ids, kind=kind))  # type: ignore[misc]
            for kind in ("ncm", "ridge", "lda", "auto")
        },
    }
    seconds = {name: _median(action, rounds) for name, action in work.items()}
    seconds["sklearn LogisticRegression, grid"] = _median(lambda: _grid(X, y), 1)
    return Timings(seconds, _loss_gap(problem))


def _drawn(rng: np.random.Generator, classes: int, each: int) -> Vectors:
    means = rng.normal(size=(classes, 1, DIM))
    return np.asarray((means + SPREAD * rng.normal(size=(classes, each, DIM))).reshape(-1, DIM))


def _bare(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Find the nearest by a product and a partial sort: what any search must do."""
    similarities = queries @ rows.T
    nearest = np.argpartition(-similarities, NEAREST - 1, axis=1)[:, :NEAREST]
    return np.take_along_axis(similarities, nearest, axis=1)


def _grid(X: Vectors, y: np.ndarray) -> object:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        return GridSearchCV(LogisticRegression(max_iter=1000), {"C": GRID}, cv=folds).fit(X, y)


def _loss_gap(problem: object) -> float:
    """Return how much larger logreg's objective is than scikit-learn's, both at C = 1, on the same rows."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    from likewise_server.heads import registry  # noqa: PLC0415
    from likewise_server.heads.base import Linear, Problem  # noqa: PLC0415

    assert isinstance(problem, Problem)  # noqa: S101
    n = len(problem.y)

    def objective(W: Vectors, b: Vectors) -> float:
        logits = problem.Z @ W + b
        logits -= logits.max(axis=1, keepdims=True)
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(n), problem.y]
        return float(loss.mean() + (W**2).sum() / (2 * n))

    ours = registry.load("logreg").fit(problem.fixing({"C": 1.0})).scorer
    theirs = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(problem.Z, problem.y)
    assert isinstance(ours, Linear)  # noqa: S101
    return objective(ours.W, ours.b) - objective(theirs.coef_.T, theirs.intercept_)


def _median(action: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))
