"""Scores of frozen features: few-shot accuracy by nearest means, and agreement with a teacher's."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Features: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]


def few_shot(
    features: Features, labels: Labels, shots: int, episodes: int, *, ways: int = 5, queries: int = 15, seed: int = 0
) -> tuple[float, float]:
    """Return mean accuracy in percent over the episodes, and the half-width of its 95 % t-interval.

    Nearest class mean by cosine; features (n, d) of length 1, labels (n,) from 0. Classes with fewer than
    shots + queries pictures must not be there.
    """
    from scipy import stats  # noqa: PLC0415  # slow to import

    rng = np.random.default_rng((seed, shots))
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    scores = []
    for _ in range(episodes):
        chosen = rng.choice(len(members), ways, replace=False)
        drawn = [rng.permutation(members[label])[: shots + queries] for label in chosen]
        centroids = np.stack([features[d[:shots]].mean(0) for d in drawn])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True) + 1e-12
        asked = np.stack([features[d[shots:]] for d in drawn])
        guesses = (asked @ centroids.T).argmax(2)
        scores.append(100 * float((guesses == np.arange(ways)[:, None]).mean()))
    half = stats.t.ppf(0.975, episodes - 1) * np.std(scores, ddof=1) / np.sqrt(episodes)
    return float(np.mean(scores)), float(half)


def fitting(labels: Labels, *, shots: int, queries: int = 15) -> dict[str, int] | None:
    """Return the `ways`, `shots` and `queries` that the pictures allow, None where two classes of two are missing.

    labels (n,), from 0, -1 where there is none.
    """
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    if len(counts) < 2 or counts.min() < 2:  # noqa: PLR2004
        return None
    least = int(counts.min())
    shots = min(shots, least // 2)
    return {"ways": min(5, len(counts)), "shots": shots, "queries": min(queries, least - shots)}


def agreement(student: NDArray[Any], teacher: NDArray[Any]) -> float:
    """Return how far two networks agree on who is like whom: the correlation of their cosines, -1 to 1.

    student (n, d), teacher (n, e), row by row of the same n >= 3 pictures; each is centred first.
    """
    pairs = np.triu_indices(len(student), 1)
    cosines = []
    for features in (student, teacher):
        x = features - features.mean(0)
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        cosines.append((x @ x.T)[pairs])
    spread = cosines[0].std() * cosines[1].std()
    if spread < 1e-12:  # noqa: PLR2004  # a network that says the same of everything agrees with nobody
        return 0.0
    return float(np.corrcoef(*cosines)[0, 1])
