"""Scores of strangeness for queries: likewise's novelty, and what pytorch-ood has for features and for logits.

pytorch-ood's methods see the examples as they are, or centred by the collection's mean. Those that want logits get
a logistic regression's. Everything is turned into the span of examples and queries first: each of them goes by
inner products alone, so that the scores stay the same and 1280 dimensions become some two hundred.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from episodes.pictures import Vectors
from episodes.systems import trained
from episodes.task import Task, in_span

C = 10.0
OURS, OURS_BARE, OURS_NARROW = "novelty", "novelty, no mean", "novelty, narrow mean"


def ours(task: Task, asked: Vectors) -> Iterator[tuple[str, Vectors]]:
    """Novelty with the collection's mean, without, and with that of the known classes' pictures alone."""
    for name, mean in ((OURS, task.mean), (OURS_BARE, None), (OURS_NARROW, task.narrow)):
        yield name, trained(task, mean, "ncm").scores(asked)[1]


def theirs(task: Task, asked: Vectors) -> Iterator[tuple[str, Vectors]]:
    """Return the scores of pytorch-ood; larger means stranger."""
    from likewise_server.heads.base import unit_rows  # noqa: PLC0415

    logging.getLogger("pytorch_ood").setLevel(logging.ERROR)
    for suffix, mean in (("", None), (" centred", task.mean)):
        Z, A = in_span(unit_rows(task.Z, mean), unit_rows(asked, mean))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, scores in _detectors(task, Z, A):
                yield name + suffix, scores


def _detectors(task: Task, Z: Vectors, A: Vectors) -> Iterator[tuple[str, Vectors]]:
    import torch  # noqa: PLC0415
    from pytorch_ood import detector as d  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    model = LogisticRegression(C=C, max_iter=1000).fit(Z, task.y)
    W, b = model.coef_, model.intercept_
    if task.n_classes == 2:
        W, b = np.concatenate([-W, W]), np.concatenate([-b, b])
    features, y, queries = (torch.from_numpy(np.asarray(part)) for part in (Z.astype(np.float32), task.y, A))
    queries = queries.float()
    weights, bias = torch.from_numpy(W).float(), torch.from_numpy(b).float()

    def head(z: torch.Tensor) -> torch.Tensor:
        return z @ weights.T + bias

    logits = head(queries)
    for name, scorer in (
        ("MSP", d.MaxSoftmax(None)),
        ("MaxLogit", d.MaxLogit(None)),
        ("Energy", d.EnergyBased(None)),
        ("Entropy", d.Entropy(None)),
        ("GEN", d.GEN(None)),
    ):
        yield name, scorer.predict_logits(logits).numpy()
    linear = torch.nn.Linear(Z.shape[1], task.n_classes)
    linear.load_state_dict({"weight": weights, "bias": bias})
    rank = max(1, min(task.n_classes, len(task.y) - 1))
    fitted: list[tuple[str, Callable[[], Any]]] = [
        ("KNN k=1", lambda: d.KNN(None, k=1)),
        ("KNN k=3", lambda: d.KNN(None, k=min(3, len(task.y)))),
        ("ViM", lambda: d.ViM(None, rank, weights, bias)),
        ("NNGuide", lambda: d.NNGuide(None, head, k=min(3, len(task.y)))),
        ("SHE", lambda: d.SHE(None, head)),
        ("NCI", lambda: d.NCI(torch.nn.Identity(), linear)),
        ("PNML", lambda: d.PNML(None, head)),
    ]
    if task.shots > 1:  # without spread inside a class there is no covariance
        fitted += [("Mahalanobis", lambda: d.Mahalanobis(None)), ("RMD", lambda: d.RMD(None))]
    for name, make in fitted:
        detector = make()
        with torch.no_grad():
            detector.fit_features(features, y)
            yield name, detector.predict_features(queries).detach().numpy()


def auroc(known: Vectors, strange: Vectors) -> float:
    """Return the chance that a stranger scores higher than a known query, ties counting half."""
    from scipy.stats import rankdata  # noqa: PLC0415

    ranks = rankdata(np.concatenate([known, strange]))
    n, m = len(known), len(strange)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
