"""How well heads do that saw one, five or ten examples of a class: accuracy over random draws of the examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from likewise.demo.indexing import Indexed
from likewise.demo.pictures import Picture
from likewise.demo.stats import Rate, over_draws
from likewise.head_results import Evaluation, Head, Prediction
from likewise.results import Float32

SHOTS = (1, 5, 10)
DRAWS = 10
MOST_TESTED = 50  # pictures of a class
UNKNOWN_SHARE = 0.3  # of the classes, which the open-set heads never see
MIN_OPEN_CLASSES = 3
TEST = "split = 'test'"

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ShotFigures:
    """Accuracy on the same held-out pictures, always answering with the likeliest class.

    `pixels` is the same head on 16x16 thumbnails, `pixel_centroids` the nearest mean thumbnail.
    """

    task: str
    shots: int
    draws: int
    classes: int
    test_images: int
    head: str
    accuracy: Rate
    pixels: Rate
    pixel_centroids: Rate
    chance: float


@dataclass(frozen=True, slots=True)
class UnknownFigures:
    """What a head does with what it never saw: of that, 1 - `rejected` got a known class's name.

    `rejected`: pictures of classes hidden from it. `strangers_rejected`: pictures of another kind altogether.
    `false_rejects`: pictures of its own classes that it called unknown.
    """

    task: str
    shots: int
    draws: int
    known_classes: int
    unknown_classes: int
    rejected: Rate
    false_rejects: Rate
    strangers_rejected: Rate | None


@dataclass(frozen=True, slots=True)
class Answers:
    """One head, its evaluation, and the test pictures with its predictions."""

    head: Head
    evaluation: Evaluation
    asked: list[Picture]
    predictions: list[Prediction]


def with_split(pictures: Sequence[Picture], seed: int) -> list[Picture]:
    """Return the pictures, each with attribute split = "train" or "test": at most 50 of a class are tested."""
    rng = np.random.default_rng(seed)
    places: dict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        places[picture.label].append(i)
    tested: set[int] = set()
    for rows in places.values():
        order = rng.permutation(rows).tolist()
        tested.update(order[: min(MOST_TESTED, len(order) // 2)])
    return [
        replace(picture, attributes={**picture.attributes, "split": "test" if i in tested else "train"})
        for i, picture in enumerate(pictures)
    ]


def accuracies(task: str, indexed: Indexed, pixels: Indexed, seed: int) -> list[ShotFigures]:
    """Return the accuracy for 1, 5 and 10 examples a class, as far as the smallest class goes."""
    labels, tested = np.array(indexed.labels), _rows(indexed, "test")
    figures = []
    for shots in _possible(indexed):
        # What kind="auto" chooses by rule for so few, without its cross-validation at every draw.
        kind = "ncm" if shots == 1 else "ridge"
        drawn = _draws(indexed, shots, DRAWS, seed)
        own, same_head, centroids = [], [], []
        for rows in drawn:
            own.append(_accuracy(indexed, rows, tested, kind))
            same_head.append(_accuracy(pixels, rows, tested, kind))
            centroids.append(_centroid_accuracy(pixels.vectors, labels, rows, tested))
        count = len(set(labels.tolist()))
        figures.append(
            ShotFigures(
                task=task,
                shots=shots,
                draws=len(drawn),
                classes=count,
                test_images=len(tested),
                head=kind,
                accuracy=over_draws(own, len(tested)),
                pixels=over_draws(same_head, len(tested)),
                pixel_centroids=over_draws(centroids, len(tested)),
                chance=1 / count,
            )
        )
    return figures


def answers(indexed: Indexed, name: str, seed: int) -> Answers:
    """Train one head as a user would, on as many examples as the figures go up to, and ask it everything."""
    [rows] = _draws(indexed, _possible(indexed)[-1], 1, seed)
    return _ask(indexed, name, "auto", rows)


def unknowns(
    task: str, indexed: Indexed, strangers: Indexed | None, name: str, seed: int
) -> tuple[UnknownFigures, Answers] | None:
    """Hide three classes in ten from a head, then ask it about all; None with fewer than three classes.

    `strangers`: vectors of the same space that belong to none of the classes.
    """
    classes = sorted(set(indexed.labels))
    if len(classes) < MIN_OPEN_CLASSES:
        return None
    hidden = max(1, round(UNKNOWN_SHARE * len(classes)))
    shots, rng = _possible(indexed)[-1], np.random.default_rng(seed)
    labels, made, strange = np.array(indexed.labels), [], []
    for rows in _draws(indexed, shots, DRAWS, seed):
        unknown = rng.permutation(classes)[:hidden]
        answer = _ask(indexed, name, "ridge", rows[~np.isin(labels[rows], unknown)])
        made.append(answer)
        if strangers:
            predictions = indexed.collection.classify(
                vectors=strangers.vectors, head=name, version=answer.head.version, neighbours=0
            )
            strange.append(float(np.mean([prediction.label is None for prediction in predictions])))
    evaluations = [answer.evaluation for answer in made]
    known = evaluations[0].known_items
    rejected = over_draws([1 - (e.unknown_accept_rate or 0.0) for e in evaluations], evaluations[0].items - known)
    false_rejects = over_draws([e.false_reject_rate or 0.0 for e in evaluations], known)
    strangers_rejected = over_draws(strange, len(strangers.vectors)) if strangers else None
    figures = UnknownFigures(
        task, shots, len(made), len(classes) - hidden, hidden, rejected, false_rejects, strangers_rejected
    )
    return figures, made[0]


def _ask(indexed: Indexed, name: str, kind: str, rows: Rows) -> Answers:
    head = _train(indexed, name, kind, rows)
    evaluation = indexed.collection.evaluate(name, version=head.version, where=TEST)
    asked = [indexed.pictures[i] for i in _rows(indexed, "test")]
    ids = [picture.id for picture in asked]
    return Answers(head, evaluation, asked, indexed.collection.classify(ids=ids, head=name, version=head.version))


def _train(indexed: Indexed, name: str, kind: str, rows: Rows) -> Head:
    return indexed.collection.train_head(
        name,
        kind,
        vectors=indexed.vectors[rows],
        labels=[indexed.pictures[i].label for i in rows],
        ids=[indexed.pictures[i].id for i in rows],
    )


def _accuracy(indexed: Indexed, rows: Rows, tested: Rows, kind: str) -> float:
    head = _train(indexed, "draw", kind, rows)
    predictions = indexed.collection.classify(
        vectors=indexed.vectors[tested], head="draw", version=head.version, reject=False, neighbours=0
    )
    return float(np.mean([p.best == indexed.pictures[i].label for p, i in zip(predictions, tested, strict=True)]))


def _centroid_accuracy(vectors: Float32, labels: NDArray[np.str_], rows: Rows, tested: Rows) -> float:
    classes = np.unique(labels[rows])
    centroids = np.stack([vectors[rows[labels[rows] == label]].mean(axis=0) for label in classes])
    distances = (centroids**2).sum(axis=1) - 2 * vectors[tested] @ centroids.T
    return float((classes[distances.argmin(axis=1)] == labels[tested]).mean())


def _rows(indexed: Indexed, split: str) -> Rows:
    return np.array([i for i, picture in enumerate(indexed.pictures) if picture.attributes["split"] == split], np.intp)


def _possible(indexed: Indexed) -> list[int]:
    """Return the numbers of examples that every class has."""
    counts = Counter(indexed.pictures[i].label for i in _rows(indexed, "train"))
    return [shots for shots in SHOTS if shots <= min(counts.values())]


def _draws(indexed: Indexed, shots: int, draws: int, seed: int) -> list[Rows]:
    """Return up to `draws` different choices of `shots` examples of every class."""
    labels, rows = np.array(indexed.labels), _rows(indexed, "train")
    rng = np.random.default_rng((seed, shots))
    made: dict[bytes, Rows] = {}
    for _ in range(draws):
        parts = [rng.choice(rows[labels[rows] == label], shots, replace=False) for label in np.unique(labels)]
        chosen = np.sort(np.concatenate(parts))
        made[chosen.tobytes()] = chosen
    return list(made.values())
