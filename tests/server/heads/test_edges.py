"""Odd training sets, for every kind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.heads import TrainedHead, evaluate, kinds, train

# The variants of an ensemble that go other ways through the code.
KINDS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in kinds()),
    ("ensemble", {"method": "bagging"}),
    ("ensemble", {"method": "boosting"}),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=[f"{k}-{o.get('method', '')}" for k, o in KINDS])


def clusters(
    sizes: list[int], d: int, spread: float, seed: int = 0
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    centres = np.random.default_rng(0).normal(size=(len(sizes), d))
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = centres[y] + spread * np.random.default_rng(seed + 1).normal(size=(len(y), d))
    return X, [f"c{c:04d}" for c in y], [f"i{i:05d}" for i in range(len(y))]


def assert_sound(head: TrainedHead, X: NDArray[np.float64]) -> None:
    probabilities, novelty = head.scores(X)
    assert np.isfinite(probabilities).all()
    assert np.isfinite(novelty).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    json.dumps(head.meta(), allow_nan=False)


@every_kind
def test_one_example_a_class(kind: str, options: dict[str, Any]) -> None:
    head = train(*clusters([1] * 5, 20, 0.0), kind=kind, options=options)
    X, labels, _ = clusters([6] * 5, 20, 0.3, seed=1)
    assert [p.best for p in head.predict(X)] == labels
    assert head.metrics.accuracy is None
    assert_sound(head, X)


@every_kind
@pytest.mark.parametrize("n", [1, 5])
def test_one_class(kind: str, options: dict[str, Any], n: int) -> None:
    X, labels, ids = clusters([n], 20, 0.1)
    head = train(X, labels, ids, kind=kind, options=options)
    (known, unknown) = head.predict(np.vstack([X[:1], -X[:1]]))
    assert (known.label, known.score) == ("c0000", 1.0)
    assert unknown.label is None
    assert_sound(head, X)


@every_kind
@pytest.mark.parametrize("more", [0, 3])
def test_the_same_vector_in_two_classes(kind: str, options: dict[str, Any], more: int) -> None:
    X, labels, ids = clusters([1 + more, 1 + more], 12, 0.4)
    X[1 + more] = X[0]
    head = train(X, labels, ids, kind=kind, options=options)
    assert any("more than one class" in warning for warning in head.warnings)
    assert_sound(head, X)
    if not more:
        assert head.predict(X[:1])[0].score == pytest.approx(0.5, abs=0.06)


@every_kind
def test_one_of_a_class_against_two_hundred_of_another(kind: str, options: dict[str, Any]) -> None:
    head = train(*clusters([200, 1], 16, 0.15), kind=kind, options=options)
    X, labels, _ = clusters([20, 20], 16, 0.15, seed=3)
    best = [p.best for p in head.predict(X, reject=False)]
    assert best[:20] == labels[:20]
    # A head that goes by numbers may not believe in so rare a class; one that weighs classes alike has to.
    if kind in {"ncm", "lda"}:
        assert best[20:] == labels[20:]
    assert any("unequal size" in warning for warning in head.warnings)
    assert_sound(head, X)


@pytest.mark.parametrize("kind", ["ridge", "lda", "logreg", "knn", "mlp", "ensemble"])
def test_balanced_weights_find_one_among_two_hundred(kind: str) -> None:
    options: dict[str, Any] = {"class_weight": "balanced", **({"members": ["ridge"]} if kind == "ensemble" else {})}
    head = train(*clusters([200, 1], 16, 0.15), kind=kind, options=options)
    X, _, _ = clusters([1, 20], 16, 0.15, seed=3)
    assert {p.best for p in head.predict(X[1:], reject=False)} == {"c0001"}


@every_kind
def test_a_thousand_classes(kind: str, options: dict[str, Any]) -> None:
    costly = kind == "mlp"
    head = train(
        *clusters([2] * 1000, 24, 0.2),
        kind=kind,
        options={**options, **({"epochs": 25, "hidden": 64} if costly else {})},
    )
    X, labels, _ = clusters([1] * 1000, 24, 0.2, seed=1)
    found = evaluate(head, X, labels, reject=False).accuracy
    assert found is not None
    assert found > (0.2 if costly else 0.7)
    assert_sound(head, X)


@every_kind
def test_labels_of_any_script(kind: str, options: dict[str, Any]) -> None:
    names = ["猫", "כלב", "e\u0301", "\u00e9", "🦉" * 3, "x" * 10_000]
    X, labels, ids = clusters([3] * 6, 20, 0.1)
    named = [names[int(label[1:])] for label in labels]
    head = train(X, named, [f"{name[:9]}/{i}" for name, i in zip(named, ids, strict=True)], kind=kind, options=options)
    again = TrainedHead.from_bytes(head.to_bytes(), json.loads(json.dumps(head.meta())))
    assert again.classes == tuple(sorted(names))
    # A letter and its accent are not the letter with an accent: labels are compared as they are.
    assert [p.best for p in again.predict(X)] == named
    assert again.predict(X[:1])[0].neighbours[0].label == "猫"
