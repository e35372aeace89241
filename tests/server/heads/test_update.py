from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from likewise_server.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise_server.heads import TrainedHead, kinds, train, update

D = 12
N = 40
LABELS = ("cat", "dog", "owl", "猫")
UPDATABLE = ("ncm", "ridge", "lda", "knn")
every_updatable = pytest.mark.parametrize("kind", UPDATABLE)


def pool(n: int = N, d: int = D, seed: int = 0) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """n examples of four classes that overlap, the last of them rare."""
    rng = np.random.default_rng(seed)
    y = np.minimum(rng.integers(0, 7, size=n) // 2, 3)
    X = np.eye(d)[y] + 0.35 * rng.normal(size=(n, d))
    return (
        (X * rng.uniform(0.5, 9, size=(n, 1))).astype(np.float32),
        [LABELS[c] for c in y],
        [f"i{i}" for i in range(n)],
    )


X, Y, IDS = pool()
QUERIES = pool(60, seed=1)[0]
MEAN = (X / np.linalg.norm(X, axis=1, keepdims=True)).mean(axis=0)


def trained(rows: list[int], kind: str, **options: Any) -> TrainedHead:
    return train(X[rows], [Y[i] for i in rows], [IDS[i] for i in rows], kind=kind, options=options, pool_mean=MEAN)


def added(head: TrainedHead, rows: list[int], remove: list[int] | None = None) -> TrainedHead:
    return update(head, X[rows], [Y[i] for i in rows], [IDS[i] for i in rows], remove=[IDS[i] for i in remove or []])


def stored(head: TrainedHead) -> TrainedHead:
    return TrainedHead.from_bytes(head.to_bytes(), json.loads(json.dumps(head.meta())))


def assert_same(one: TrainedHead, other: TrainedHead, queries: NDArray[Any] = QUERIES) -> None:
    np.testing.assert_allclose(one.scores(queries)[0], other.scores(queries)[0], atol=1e-6)
    np.testing.assert_allclose(one.scores(queries)[1], other.scores(queries)[1], atol=1e-6)
    assert one.classes == other.classes
    assert one.threshold == pytest.approx(other.threshold, abs=1e-6)
    assert one.temperature == pytest.approx(other.temperature, rel=1e-6)
    assert replace(one.metrics, temperature=0) == replace(other.metrics, temperature=0)
    assert one.warnings == other.warnings
    assert dict(one.chosen) == dict(other.chosen)
    assert one.support_ids == other.support_ids


@every_updatable
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    start=st.sets(st.integers(0, N - 1), min_size=1),
    steps=st.lists(st.tuples(st.sets(st.integers(0, N - 1)), st.sets(st.integers(0, N - 1))), max_size=4),
    center=st.booleans(),
)
def test_any_sequence_of_updates_is_training_on_what_is_left(
    kind: str, start: set[int], steps: list[tuple[set[int], set[int]]], center: bool
) -> None:
    options = {"center": True} if center and kind != "knn" else {}
    now, head = set(start), trained(sorted(start), kind, **options)
    for add, drop in steps:
        going = (drop & now) - add
        if not (now - going) | add:
            continue
        head = stored(added(head, sorted(add), sorted(going)))
        now = (now - going) | add
    assert_same(head, trained(sorted(now), kind, **options))


@every_updatable
def test_adding_and_removing_again_is_nothing(kind: str) -> None:
    head = trained(list(range(20)), kind)
    assert added(added(head, [30, 31, 32]), [], [30, 31, 32]).to_bytes() == head.to_bytes()


@every_updatable
def test_a_new_class_comes_and_the_last_example_of_one_takes_it_away(kind: str) -> None:
    old, new = [i for i in range(N) if Y[i] != "猫"], [i for i in range(N) if Y[i] == "猫"]
    head = trained(old, kind)
    grown = added(head, new)
    assert grown.classes == ("cat", "dog", "owl", "猫")
    assert {p.best for p in grown.predict(X[new])} == {"猫"}
    assert added(grown, [], new).classes == head.classes
    assert_same(added(grown, [], new), head)


@every_updatable
def test_an_id_that_is_there_is_replaced(kind: str) -> None:
    head = trained(list(range(20)), kind)
    changed = update(head, X[25:26], ["dog"], [IDS[3]])
    rows = [25 if i == 3 else i for i in range(20)]
    labels = ["dog" if i == 3 else Y[i] for i in range(20)]
    assert_same(changed, train(X[rows], labels, IDS[:20], kind=kind, pool_mean=MEAN))


def test_what_auto_chose_is_updated_as_that_kind_and_keeps_its_reason() -> None:
    head = trained(list(range(30)), "auto")
    grown = added(head, [35])
    assert (grown.kind, grown.reason, grown.options) == (head.kind, head.reason, head.options)
    again = added(added(head, [35]), [36])
    centred = {"center": True} if head.mean is not None else {}
    assert_same(again, trained([*range(30), 35, 36], head.kind, **centred))


def test_the_same_picture_is_warned_of_after_an_update_too() -> None:
    head = train(X[:4], Y[:4], IDS[:4], kind="ncm", content_hashes=list("abcd"))
    other = "dog" if Y[0] == "cat" else "cat"
    grown = update(stored(head), X[9:10], [other], ["new"], content_hashes=["a"])
    assert any("the same picture is in more than one class" in warning for warning in grown.warnings)


@pytest.mark.parametrize("kind", sorted(set(kinds()) - {"auto", *UPDATABLE}))
def test_other_kinds_say_to_train_again(kind: str) -> None:
    head = trained(list(range(24)), kind, **({"method": "average"} if kind == "ensemble" else {}))
    with pytest.raises(FailedPrecondition, match=rf"{kind}' cannot be updated: train it again .* ridge"):
        added(head, [30])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"remove": ["nobody"]}, NotFound, "not trained on 'nobody'"),
        ({"remove": IDS[:20]}, FailedPrecondition, "delete the head"),
        ({"vectors": X[:1], "labels": ["cat"], "ids": ["i0"], "remove": ["i0"]}, InvalidArgument, "added and removed"),
        ({"vectors": X[:1, 1:], "labels": ["cat"], "ids": ["n"]}, InvalidArgument, "dimensions"),
        ({"vectors": X[:1] * np.nan, "labels": ["cat"], "ids": ["n"]}, InvalidArgument, "NaN"),
        ({"vectors": X[:1], "labels": [" "], "ids": ["n"]}, InvalidArgument, "label 0"),
        ({"vectors": X[:2], "labels": ["cat", "dog"], "ids": ["n", "n"]}, InvalidArgument, "twice"),
        ({"vectors": X[:1], "labels": ["cat"], "ids": ["n"], "content_hashes": ["a", "b"]}, InvalidArgument, "hashes"),
        ({"labels": ["cat"]}, InvalidArgument, "1 labels"),
    ],
)
def test_an_update_that_makes_no_sense_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    request = {"vectors": np.empty((0, D)), "labels": [], "ids": [], **change}
    with pytest.raises(error, match=message):
        update(trained(list(range(20)), "ridge"), **request)


def test_a_prior_that_does_not_fit_the_new_classes_is_refused() -> None:
    rows = [i for i in range(N) if Y[i] in {"cat", "dog"}]
    head = trained(rows, "ridge", prior={"cat": 1.0, "dog": 3.0})
    kept = added(head, [], rows[:2])
    assert kept.options == head.options
    assert_same(kept, trained(rows[2:], "ridge", prior={"cat": 1.0, "dog": 3.0}))
    with pytest.raises(FailedPrecondition, match="prior"):
        added(head, [i for i in range(N) if Y[i] == "owl"][:1])


# Past what a head keeps.

BIG, BIG_Y, BIG_IDS = pool(300, seed=3)
LIMIT = 90


@pytest.fixture
def _keeps_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise_server.heads.training.MAX_SUPPORTS", LIMIT)


def big(rows: NDArray[np.intp], kind: str, **options: Any) -> TrainedHead:
    return train(
        BIG[rows],
        [BIG_Y[i] for i in rows],
        [BIG_IDS[i] for i in rows],
        kind=kind,
        options=options,
        pool_mean=MEAN,
    )


def big_update(head: TrainedHead, add: NDArray[np.intp], drop: NDArray[np.intp]) -> TrainedHead:
    held = set(head.support_ids)
    return update(
        head,
        BIG[add],
        [BIG_Y[i] for i in add],
        [BIG_IDS[i] for i in add],
        remove=[BIG_IDS[i] for i in drop],
        removed={BIG_IDS[i]: BIG[i] for i in drop if BIG_IDS[i] not in held},
    )


def logits(head: TrainedHead) -> NDArray[np.float64]:
    Z = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    return head.scorer.logits(Z.astype(np.float64), np.zeros((len(Z), 0)))


@pytest.mark.usefixtures("_keeps_few")
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("kind", "given"), [("ncm", {}), ("lda", {}), ("ridge", {"lam": 0.1}), ("ridge", {})])
def test_a_head_that_keeps_a_part_is_updated_by_sums(kind: str, given: dict[str, Any], center: bool) -> None:
    options = {**given, "center": center}
    rng = np.random.default_rng(5)
    now, head = np.arange(150), big(np.arange(150), kind, **options)
    assert len(head.support_ids) < 100
    for _ in range(6):
        add = rng.choice(300, size=20, replace=False)
        drop = np.setdiff1d(rng.choice(now, size=15, replace=False), add)
        head = stored(big_update(head, add, drop))
        now = np.union1d(np.setdiff1d(now, drop), add)
    fresh = big(now, kind, **options)
    np.testing.assert_allclose(logits(head), logits(fresh), atol=1e-6)
    assert head.example_ids == fresh.example_ids
    assert (head.metrics.n, head.metrics.per_class) == (fresh.metrics.n, fresh.metrics.per_class)
    assert (head.metrics.chance, dict(head.chosen)) == (fresh.metrics.chance, dict(fresh.chosen))
    # These are measured on the rows kept, which removals have thinned.
    assert head.threshold == pytest.approx(fresh.threshold, abs=0.1)
    assert head.metrics.accuracy == pytest.approx(fresh.metrics.accuracy, abs=0.1)


@pytest.mark.usefixtures("_keeps_few")
@pytest.mark.parametrize("kind", ["ncm", "lda", "ridge"])
def test_growing_in_proportion_past_the_limit_equals_training_in_everything(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.array(LABELS)[np.arange(240) % 4]
    V = np.eye(D)[np.arange(240) % 4] + 0.35 * rng.normal(size=(240, D))
    ids = [f"{i:03d}" for i in range(240)]
    # From under the limit over it, then on; each time as many of each class.
    head = train(V[:80], list(labels[:80]), ids[:80], kind=kind)
    for start in (80, 120, 200):
        part = slice(start, {80: 120, 120: 200, 200: 240}[start])
        head = update(stored(head), V[part], list(labels[part]), ids[part])
    assert_same(head, train(V, list(labels), ids, kind=kind))


@pytest.mark.usefixtures("_keeps_few")
def test_a_class_comes_and_goes_past_the_limit() -> None:
    owls = np.flatnonzero(np.array(BIG_Y) == "owl")
    others = np.setdiff1d(np.arange(300), owls)
    for kind in ("ncm", "lda", "ridge"):
        head = big(others, kind)
        grown = big_update(head, owls, owls[:0])
        assert grown.classes == ("cat", "dog", "owl", "猫")
        np.testing.assert_allclose(logits(grown), logits(big(np.arange(300), kind)), atol=1e-6)
        shrunk = big_update(grown, owls[:0], owls)
        assert shrunk.classes == head.classes
        np.testing.assert_allclose(logits(shrunk), logits(head), atol=1e-6)


@pytest.mark.usefixtures("_keeps_few")
def test_only_the_vector_that_was_added_can_be_taken_away() -> None:
    head = big(np.arange(200), "ridge")
    gone = next(i for i in range(200) if BIG_IDS[i] not in head.support_ids)
    one = BIG_IDS[gone]
    with pytest.raises(FailedPrecondition, match=f"keeps no vector of '{one}'"):
        update(head, BIG[:0], [], [], remove=[one])
    with pytest.raises(FailedPrecondition, match=f"vector of '{one}' has changed since: train the head again"):
        update(head, BIG[:0], [], [], remove=[one], removed={one: BIG[gone] + 0.01})
    # The same direction is the same example: vectors are kept at length 1.
    smaller = update(head, BIG[:0], [], [], remove=[one], removed={one: BIG[gone]})
    np.testing.assert_allclose(logits(smaller), logits(big(np.delete(np.arange(200), gone), "ridge")), atol=1e-6)
    # A new label for the same vector needs no one to give the old one.
    other = "dog" if BIG_Y[gone] == "cat" else "cat"
    relabelled = update(head, BIG[gone : gone + 1], [other], [one])
    labels = [other if i == gone else BIG_Y[i] for i in range(200)]
    np.testing.assert_allclose(
        logits(relabelled), logits(train(BIG[:200], labels, BIG_IDS[:200], kind="ridge")), atol=1e-6
    )


@pytest.mark.usefixtures("_keeps_few")
def test_a_class_of_which_nothing_is_kept_needs_training() -> None:
    head = big(np.arange(200), "ncm")
    cats = [i for i in range(200) if BIG_Y[i] == "cat" and BIG_IDS[i] in head.support_ids]
    with pytest.raises(FailedPrecondition, match="'cat'"):
        big_update(head, np.arange(0), np.array(cats))


@pytest.mark.usefixtures("_keeps_few")
def test_heads_without_sums_are_trained_again() -> None:
    balanced = big(np.arange(200), "ridge", class_weight="balanced")
    with pytest.raises(FailedPrecondition, match=r"of its 200 examples and no sums .* train it again"):
        big_update(balanced, np.arange(200, 201), np.arange(0))
    votes = big(np.arange(200), "knn", class_weight="balanced")
    grown = big_update(votes, np.arange(200, 250), np.arange(10))
    assert_same(grown, big(np.arange(10, 250), "knn", class_weight="balanced"))


def test_a_head_stored_before_updates_were_possible_is_read_and_updated() -> None:
    from safetensors.numpy import load, save  # noqa: PLC0415

    head = trained(list(range(20)), "ridge")
    arrays = load(head.to_bytes())
    names = ("supports", "support_classes", "support_ids", "log_prior", "scorer.W", "scorer.b")
    meta = json.loads(json.dumps(head.meta()))
    old = TrainedHead.from_bytes(save({name: arrays[name] for name in names}), meta)
    fresh = train(X[[*range(20), 25]], [*Y[:20], Y[25]], [*IDS[:20], IDS[25]], kind="ridge")
    assert_same(added(old, [25]), fresh)
