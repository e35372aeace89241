"""What every kind of head must do, the registry says which there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_server.heads import TrainedHead, evaluate, kinds, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

D = 24
every_kind = pytest.mark.parametrize("kind", kinds())


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    # Small matrices on a busy machine: BLAS threads would wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def blobs(sizes: list[int], *, spread: float = 0.15, seed: int = 0) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """One tight cluster along each axis, of vectors of differing lengths."""
    rng = np.random.default_rng(seed)
    labels = [f"c{c}" for c, size in enumerate(sizes) for _ in range(size)]
    axes = np.repeat(np.arange(len(sizes)), sizes)
    X = np.eye(D)[axes] + spread * rng.normal(size=(len(axes), D)) / np.sqrt(D) * 3
    X *= rng.uniform(0.5, 20, size=(len(axes), 1))
    return X.astype(np.float32), labels, [f"id{i:03d}" for i in range(len(labels))]


def fit(sizes: list[int], kind: str, **options: Any) -> TrainedHead:
    return train(*blobs(sizes), kind=kind, options=options)


def answers(head: TrainedHead, X: NDArray[Any]) -> tuple[bytes, bytes]:
    probabilities, novelty = head.scores(X)
    return probabilities.tobytes(), novelty.tobytes()


@every_kind
@pytest.mark.parametrize("sizes", [[6, 5, 7], [1, 1, 1], [4], [1], [2, 2], [1, 9, 3]])
def test_predictions_after_a_round_trip_are_the_same_bits(kind: str, sizes: list[int]) -> None:
    X, labels, ids = blobs(sizes)
    head = train(X, labels, ids, kind=kind, pool_mean=np.full(D, 0.01))
    again = TrainedHead.from_bytes(head.to_bytes(), json.loads(json.dumps(head.meta())))
    queries = blobs([5] * 6, seed=1)[0]
    assert answers(again, queries) == answers(head, queries)
    for one, other in zip(head.predict(queries), again.predict(queries), strict=True):
        assert (one.label, one.best, one.score, one.neighbours) == (
            other.label,
            other.best,
            other.score,
            other.neighbours,
        )
    assert again.metrics == head.metrics
    assert again.meta() == head.meta()
    assert again.to_bytes() == head.to_bytes()
    assert (again.support_ids, again.support_labels) == (head.support_ids, head.support_labels)


@every_kind
def test_probabilities_sum_to_one_and_follow_the_classes(kind: str) -> None:
    head = fit([6, 5, 7], kind)
    queries, labels, _ = blobs([4, 4, 4], seed=1)
    for prediction, label in zip(head.predict(queries, reject=False), labels, strict=True):
        assert prediction.probabilities.shape == (3,)
        assert prediction.probabilities.sum() == pytest.approx(1)
        assert prediction.label == prediction.best == label == head.classes[int(prediction.probabilities.argmax())]
        assert prediction.score == prediction.probabilities.max()


@every_kind
def test_one_example_a_class_works_and_says_what_is_not_measured(kind: str) -> None:
    head = fit([1, 1, 1], kind)
    queries, labels, _ = blobs([4, 4, 4], seed=1)
    assert [p.best for p in head.predict(queries)] == labels
    metrics = head.metrics
    assert (metrics.accuracy, metrics.accuracy_low, metrics.false_reject_rate) == (None, None, None)
    assert "no class has two examples" in metrics.note
    assert any("guess" in warning for warning in head.warnings)


@every_kind
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_one_class_accepts_its_like_and_rejects_the_rest(kind: str, n: int) -> None:
    head = fit([n], kind)
    like, unlike = blobs([4, 0, 0, 3], seed=1, spread=0.02)[0][:4], np.eye(D)[5:9]
    assert [p.label for p in head.predict(like)] == ["c0"] * 4
    assert [p.label for p in head.predict(unlike)] == [None] * 4
    assert [p.best for p in head.predict(unlike)] == ["c0"] * 4
    assert head.metrics.accuracy is None
    assert "one class" in head.metrics.note


@every_kind
def test_classes_of_unequal_size_are_all_found_and_warned_of(kind: str) -> None:
    head = fit([30, 3, 5], kind)
    queries, labels, _ = blobs([4, 4, 4], seed=1)
    assert [p.best for p in head.predict(queries)] == labels
    assert any("unequal" in warning for warning in head.warnings)
    assert head.metrics.per_class == {"c0": 30, "c1": 3, "c2": 5}
    assert head.metrics.chance == pytest.approx(30 / 38)


@every_kind
def test_the_same_vector_in_two_classes_is_no_crash_but_a_warning(kind: str) -> None:
    X = np.ones((2, D), dtype=np.float32)
    head = train(X, ["a", "b"], ["x", "y"], kind=kind)
    (prediction,) = head.predict(X[:1])
    assert prediction.label in {"a", "b"}
    # A network that drops units at random comes only near the middle.
    assert prediction.score == pytest.approx(0.5, abs=0.05 if kind == "mlp" else 1e-6)
    assert any("more than one class: 'x' as 'a', 'y' as 'b'" in warning for warning in head.warnings)


@every_kind
def test_the_order_of_the_rows_changes_no_bit(kind: str) -> None:
    X, labels, ids = blobs([7, 5, 6])
    shuffled = np.random.default_rng(3).permutation(len(X))
    other = train(X[shuffled], [labels[i] for i in shuffled], [ids[i] for i in shuffled], kind=kind)
    head = train(X, labels, ids, kind=kind)
    assert other.to_bytes() == head.to_bytes()
    assert other.meta() == head.meta()


@every_kind
@pytest.mark.parametrize("sizes", [[8, 8, 8], [1, 1, 1], [2, 2]])
def test_what_is_far_from_every_example_is_unknown(kind: str, sizes: list[int]) -> None:
    head = fit(sizes, kind)
    far = np.vstack([np.eye(D)[10:14], -np.eye(D)[:3]]) * 100
    for prediction in head.predict(far):
        assert prediction.label is None
        assert prediction.novelty > prediction.threshold
    assert all(p.label == p.best for p in head.predict(far, reject=False))


@every_kind
def test_the_examples_themselves_are_known_and_their_own_nearest_neighbours(kind: str) -> None:
    X, labels, ids = blobs([8, 8, 8])
    head = train(X, labels, ids, kind=kind)
    predictions = head.predict(X, neighbours=2)
    assert [p.neighbours[0].id for p in predictions] == ids
    assert [p.neighbours[0].label for p in predictions] == labels
    assert all(p.neighbours[0].similarity == pytest.approx(1, abs=1e-6) for p in predictions)
    assert sum(p.label is None for p in predictions) <= 0.05 * len(X)
    assert head.predict(X[:1], neighbours=0)[0].neighbours == ()
    assert len(head.predict(X[:1], neighbours=999)[0].neighbours) == len(X)


@every_kind
def test_scale_does_not_matter(kind: str) -> None:
    X, labels, ids = blobs([4, 4, 4])
    head, large = train(X, labels, ids, kind=kind), train(X * 4, labels, ids, kind=kind)
    assert answers(large, X * 2) == answers(head, X)


@every_kind
def test_options_are_honoured_and_unknown_ones_listed(kind: str) -> None:
    assert fit([3, 3], kind, temperature=7.0).temperature == 7.0
    with pytest.raises(InvalidArgument, match=r"no option 'colour': it has .*max_false_reject"):
        fit([3, 3], kind, colour="red")
    prior = fit([3, 3], kind, prior={"c0": 1e6, "c1": 1.0}, temperature=1.0)
    assert {p.best for p in prior.predict(blobs([2, 2], seed=1)[0])} == {"c0"}
    with pytest.raises(InvalidArgument, match="prior"):
        fit([3, 3], kind, prior={"c0": 1.0})


@every_kind
@pytest.mark.parametrize("bad", ["nan", "inf", "zero", "dim", "rank", "none"])
def test_vectors_that_cannot_be_classified_are_refused(kind: str, bad: str) -> None:
    head = fit([3, 3], kind)
    X = np.ones((2, D))
    X = {"nan": X * np.nan, "inf": X * np.inf, "zero": X * 0, "dim": X[:, 1:], "rank": X[0], "none": X[:0]}[bad]
    with pytest.raises(InvalidArgument):
        head.predict(X)


@every_kind
def test_a_damaged_or_foreign_head_is_refused(kind: str) -> None:
    head = fit([3, 3], kind)
    with pytest.raises(FailedPrecondition, match="damaged"):
        TrainedHead.from_bytes(head.to_bytes()[:-9], head.meta())
    with pytest.raises(FailedPrecondition, match="version"):
        TrainedHead.from_bytes(head.to_bytes(), {**head.meta(), "version": 99})


@every_kind
def test_measured_accuracy_is_within_its_interval_and_near_the_truth(kind: str) -> None:
    X, labels, ids = blobs([20, 20, 20], spread=0.5)
    head = train(X, labels, ids, kind=kind)
    metrics = head.metrics
    assert metrics.accuracy is not None
    assert metrics.accuracy_low is not None
    assert metrics.accuracy_high is not None
    assert metrics.accuracy_low <= metrics.accuracy <= metrics.accuracy_high
    fresh = evaluate(head, *blobs([300, 300, 300], spread=0.5, seed=2)[:2], reject=False)
    assert fresh.accuracy is not None
    assert metrics.accuracy_low - 0.02 <= fresh.accuracy <= metrics.accuracy_high + 0.02
    assert metrics.false_reject_rate is not None
    assert metrics.false_reject_rate <= 0.05


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    noise=st.sampled_from([0.0, 0.1, 3.0]),
    kind=st.sampled_from(kinds()),
    centred=st.booleans(),
)
def test_no_odd_size_crashes_a_kind(sizes: list[int], noise: float, kind: str, centred: bool) -> None:
    X, labels, ids = blobs(sizes, spread=noise)
    mean = (X / np.linalg.norm(X, axis=1, keepdims=True)).mean(axis=0) if centred else None
    head = train(X, labels, ids, kind=kind, pool_mean=mean)
    probabilities, novelty = head.scores(X)
    assert np.isfinite(probabilities).all()
    assert np.isfinite(novelty).all()
    assert np.isfinite(head.threshold)
    assert np.allclose(probabilities.sum(axis=1), 1)
    json.dumps(head.meta(), allow_nan=False)
