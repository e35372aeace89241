"""The systems that are compared: likewise's heads and, on the same vectors, easyfsl's and scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from episodes.pictures import Vectors
from episodes.task import Classes, Task, of_examples

if TYPE_CHECKING:
    from likewise_server.heads import TrainedHead

GRID = 10.0 ** np.arange(-6, 6)
FOLDS = 3
# Rows squared times classes past which a grid of 36 fits takes minutes.
LARGEST_GRID = 2_000_000
# Each class's covariance of 1280 dimensions takes a tenth of a second, and solving with it a whole one.
MOST_COVARIANCES, MOST_DIMENSIONS = 10, 512

Answer = Callable[[Task], Classes | None]


@dataclass(frozen=True, slots=True)
class System:
    """`answer` returns a class for each query, None where it has no answer for such a task."""

    name: str
    answer: Answer
    peer: bool = False
    slow: bool = False
    """Asked the first episodes of each cell only."""


def trained(task: Task, mean: Vectors | None, kind: str = "auto") -> TrainedHead:
    """Train a head as the server does for a collection with that mean."""
    from likewise_server.heads import train  # noqa: PLC0415

    labels = [f"{number:04}" for number in task.y]
    return train(task.Z, labels, [f"{i:05}" for i in range(len(labels))], kind=kind, pool_mean=mean)


def _kind(name: str, *, centred: bool = False) -> Answer:
    from likewise_server.heads import HeadOptions, registry  # noqa: PLC0415
    from likewise_server.heads.base import Problem, unit_rows  # noqa: PLC0415

    def answer(task: Task) -> Classes | None:
        if name == "logreg" and _too_large(task):
            return None
        Z, Q = (unit_rows(rows, task.mean if centred else None) for rows in (task.Z, task.Q))
        fit = registry.load(name).fit(Problem(Z, task.y, task.n_classes, HeadOptions()))
        return np.asarray(fit.scorer.logits(Q, Q @ Z.T).argmax(axis=1))

    return answer


def easyfsl(task: Task, *, centred: bool = False, euclidean: bool = False) -> Classes:
    """Nearest class mean by easyfsl: SimpleShot, by cosine, or a prototypical network, by distance."""
    import torch  # noqa: PLC0415
    from easyfsl.methods import PrototypicalNetworks, SimpleShot  # noqa: PLC0415

    method = PrototypicalNetworks if euclidean else SimpleShot
    centre = torch.from_numpy(task.mean) if centred else None
    model = method(feature_centering=centre, feature_normalization=2.0)
    with torch.inference_mode():
        model.process_support_set(torch.from_numpy(task.Z), torch.from_numpy(task.y))
        return np.asarray(model(torch.from_numpy(task.Q)).argmax(dim=1).numpy())


def sklearn_logreg(task: Task) -> Classes | None:
    """Fit scikit-learn's logistic regression: C of twelve by 3-fold cross-validation, 1 with under three of a class.

    In the span of the examples, where it has the same optimum.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: PLC0415

    if _too_large(task):
        return None
    Z, Q = of_examples(task)
    plain = LogisticRegression(max_iter=1000)
    grid = GridSearchCV(plain, {"C": GRID}, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray((grid if task.shots >= FOLDS else plain).fit(Z, task.y).predict(Q))


def sklearn_knn(task: Task) -> Classes:
    """As many neighbours as examples a class, at most scikit-learn's usual five."""
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(KNeighborsClassifier(min(5, task.shots)).fit(task.Z, task.y).predict(task.Q))


class LedoitWolfInSpan:
    """Ledoit and Wolf's covariance of rows of `dim` dimensions, given in coordinates of a subspace that holds them.

    What scikit-learn's LedoitWolf gives goes by lengths and inner products alone, but for the number of dimensions.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def fit(self, X: Vectors) -> LedoitWolfInSpan:
        """Set `covariance_`, as scikit-learn's discriminant analysis asks of an estimator."""
        n, p = len(X), self.dim
        X = X - X.mean(axis=0)
        S = X.T @ X / n
        level, square = np.trace(S) / p, np.sum(S**2)
        spread = square - p * level**2
        noise = min((np.sum(np.sum(X**2, axis=1) ** 2) / n - square) / n, spread)
        share = noise / spread if spread > 0 else 0.0
        self.covariance_ = (1 - share) * S + share * level * np.eye(X.shape[1])
        return self


def sklearn_lda(task: Task, *, standardised: bool = False) -> Classes | None:
    """Linear discriminant analysis with Ledoit and Wolf's shrinkage; `standardised` as shrinkage="auto" does it.

    That takes the dimensions as they come and is asked of few. Needs more rows than classes.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # noqa: PLC0415

    if task.shots == 1 or (standardised and (task.Z.shape[1] > MOST_DIMENSIONS or task.n_classes > MOST_COVARIANCES)):
        return None
    if standardised:
        how: dict[str, object] = {"shrinkage": "auto"}
        Z, Q = task.Z, task.Q
    else:
        how = {"covariance_estimator": LedoitWolfInSpan(task.Z.shape[1])}
        Z, Q = of_examples(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(LinearDiscriminantAnalysis(solver="lsqr", **how).fit(Z, task.y).predict(Q))


def _too_large(task: Task) -> bool:
    return len(task.y) ** 2 * task.n_classes > LARGEST_GRID


AUTO, NCM, EASYFSL_NCM = "auto", "ncm", "easyfsl SimpleShot"
SYSTEMS = (
    System(NCM, _kind("ncm")),
    System("ncm centred", _kind("ncm", centred=True)),
    System("knn", _kind("knn")),
    System("ridge", _kind("ridge")),
    System("ridge centred", _kind("ridge", centred=True)),
    System("lda", _kind("lda")),
    System("lda centred", _kind("lda", centred=True)),
    System("logreg", _kind("logreg"), slow=True),
    System(EASYFSL_NCM, easyfsl, peer=True),
    System("easyfsl SimpleShot centred", lambda task: easyfsl(task, centred=True), peer=True),
    System("easyfsl PrototypicalNetworks", lambda task: easyfsl(task, euclidean=True), peer=True),
    System("sklearn LogisticRegression", sklearn_logreg, peer=True, slow=True),
    System("sklearn KNeighbors", sklearn_knn, peer=True),
    System("sklearn LDA", sklearn_lda, peer=True),
    System("sklearn LDA auto", lambda task: sklearn_lda(task, standardised=True), peer=True, slow=True),
)
