"""Doubts about labels, what to label next, what to train on: on real digits with mistakes put in by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.errors import InvalidArgument
from likewise_server.heads import TrainedHead, train
from likewise_server.heads.base import unit_rows
from likewise_server.heads.choosing import SAME, choose
from likewise_server.heads.judging import confusions, doubts, judge
from likewise_server.heads.selecting import select

Data = tuple[NDArray[np.float32], list[str], list[str]]


def mislabelled(digits: Data, n: int = 400, wrong: int = 20) -> tuple[NDArray[np.float32], list[str], set[int]]:
    """The first n digits, of which some bear the label of another class."""
    X, labels, _ = digits
    rows = set(np.random.default_rng(1).choice(n, wrong, replace=False).tolist())
    return X[:n], [str((int(labels[i]) + 3) % 10) if i in rows else labels[i] for i in range(n)], rows


def fitted(X: NDArray[np.float32], labels: list[str], kind: str = "ridge") -> TrainedHead:
    return train(X, labels, [f"{i:05}" for i in range(len(X))], kind=kind, pool_mean=unit_rows(X).mean(axis=0))


@pytest.mark.parametrize("kind", ["auto", "ncm", "ridge", "logreg", "knn"])
def test_labels_that_were_changed_are_the_first_to_be_doubted(digits: Data, kind: str) -> None:
    X, labels, wrong = mislabelled(digits)
    head = fitted(X, labels, kind)
    judged = judge(head, X, labels)
    assert len(judged.rows) == len(X)
    found = doubts(judged)
    first = [doubt.row for doubt in found[:10]]
    assert len(wrong & set(first)) >= 9
    doubted = {doubt.row for doubt in found}
    assert len(wrong & doubted) >= 0.6 * len(wrong)
    assert len(doubted - wrong) <= len(wrong) / 2  # and few others of the 380
    right = digits[1]
    suggested = [head.classes[doubt.suggested] == right[doubt.row] for doubt in found if doubt.row in wrong]
    assert np.mean(suggested) > 0.8
    margins = [judged.own[d.row] - judged.probabilities[d.row, d.suggested] for d in found]
    assert margins == sorted(margins)
    assert max(margins) < 0


def test_no_example_is_judged_by_a_head_that_saw_it() -> None:
    """Labels that say nothing: a head that had seen them would find them right."""
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(200, 400)).astype(np.float32), [str(i % 4) for i in range(200)]
    head = fitted(X, labels)
    assert (head.scores(X)[0].argmax(axis=1) == np.arange(200) % 4).mean() > 0.9
    judged = judge(head, X, labels)
    assert (judged.answers == judged.y).mean() < 0.45


def test_the_only_one_of_a_class_cannot_be_judged_and_is_not_doubted(digits: Data) -> None:
    X, labels = digits[0][:60], [*digits[1][:59], "alone"]
    judged = judge(fitted(X, labels), X, labels)
    assert 59 not in judged.rows
    assert not judged.probabilities[59].any()
    assert 59 not in {doubt.row for doubt in doubts(judged)}
    one = judge(fitted(X[:5], ["a"] * 5), X[:5], ["a"] * 5)
    assert len(one.rows) == 0
    assert doubts(one) == []
    assert confusions(one) == []
    with pytest.raises(InvalidArgument, match="'z' is none that the head knows"):
        judge(fitted(X, labels), X[:1], ["z"])


def test_classes_taken_for_each_other_are_counted() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(6)[[0, 1, 1, 3]]  # the second and the third class are the same
    y = np.repeat(np.arange(4), 25)
    X = (centres[y] + 0.05 * rng.normal(size=(100, 6))).astype(np.float32)
    labels = [f"c{label}" for label in y]
    judged = judge(fitted(X, labels), X, labels)
    found = confusions(judged)
    assert {(c.label, c.taken_for) for c in found} == {(1, 2), (2, 1)}
    assert found[0].rows >= found[1].rows
    for each in found:
        expected = int(((judged.y == each.label) & (judged.answers == each.taken_for)).sum())
        assert (each.rows, each.share) == (expected, expected / 25)


def test_what_has_no_label_at_all_is_covered_class_by_class(digits: Data) -> None:
    X, labels, _ = digits
    chosen = choose(X[:600], np.empty((0, X.shape[1])), None, 20)
    assert len(chosen) == 20
    assert {each.reason for each in chosen} == {"typical"}
    assert len({labels[each.row] for each in chosen}) == 10
    # Typical ones lie nearer to others of their class than an average one does.
    Z = unit_rows(X[:600])
    means = {c: Z[[i for i in range(600) if labels[i] == c]].mean(axis=0) for c in set(labels)}
    near = [float(Z[i] @ means[labels[i]]) for i in range(600)]
    assert np.mean([near[each.row] for each in chosen[:10]]) > np.mean(near)


def test_a_class_without_a_label_comes_before_what_is_uncertain(digits: Data) -> None:
    X, labels, _ = digits
    known = [i for i in range(400) if labels[i] != "0"]
    pool = list(range(400, 1000))
    head = fitted(X[known], [labels[i] for i in known])
    shares = head.scores(X[pool])[0]
    chosen = choose(X[pool], X[known], shares, 10)
    assert chosen[0].reason == "typical"
    assert labels[pool[chosen[0].row]] == "0"
    uncertain = [each.row for each in chosen if each.reason == "uncertain"]
    assert len(uncertain) >= 3
    ordered = np.sort(shares, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    assert margin[uncertain].tolist() == sorted(margin[uncertain])
    assert max(margin[uncertain]) < np.quantile(margin, 0.05)


def test_nothing_is_chosen_twice_nor_what_is_nearly_labelled_already() -> None:
    rng = np.random.default_rng(0)
    different = rng.normal(size=(30, 50))
    pool = np.repeat(different, 8, axis=0) + 0.01 * rng.normal(size=(240, 50))
    chosen = choose(pool, different[:10] + 0.01, np.full((240, 2), 0.5), 100)
    assert sorted(each.row // 8 for each in chosen) == list(range(10, 30))
    Z = unit_rows(pool)[[each.row for each in chosen]]
    assert (Z @ Z.T - np.eye(len(Z))).max() < SAME
    narrow = pool + 7  # pictures of one kind are all alike until their mean is taken away
    assert (unit_rows(narrow) @ unit_rows(narrow).T).min() > 0.95
    again = choose(narrow, different[:10] + 7.01, np.full((240, 2), 0.5), 100)
    assert sorted(each.row // 8 for each in again) == list(range(10, 30))
    assert len(choose(np.ones((50, 8)) + 1e-4 * rng.normal(size=(50, 8)), np.empty((0, 8)), None, 5)) == 1
    assert choose(pool[:3], pool[:3], None, 5) == []
    assert len(choose(pool[:1], np.empty((0, 50)), None, 5)) == 1


def test_wrong_and_far_examples_are_not_trained_on(digits: Data) -> None:
    X, labels, wrong = mislabelled(digits)
    upside_down = X.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)
    mixed = np.where((np.arange(len(X)) % 2 == 0)[:, None], X, upside_down)
    target = digits[0][1000:1300]
    judged = judge(fitted(mixed, labels), mixed, labels)
    chosen = select(judged, mixed, target, 0.5)
    assert np.array_equal(chosen.wrong[judged.rows], judged.answers[judged.rows] != judged.y[judged.rows])
    assert not (chosen.kept & chosen.wrong).any()
    assert np.mean([chosen.wrong[row] for row in wrong]) > 0.8
    for label in range(10):
        right = (judged.y == label) & ~chosen.wrong
        assert chosen.kept[right].sum() == np.ceil(right.sum() / 2)
        assert chosen.nearness[right & chosen.kept].min() >= chosen.nearness[right & ~chosen.kept].max()
    assert (np.flatnonzero(chosen.kept) % 2 == 0).mean() > 0.65  # more of those the right way up
    brute = np.sort(unit_rows(mixed[:5]) @ unit_rows(target).T, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(chosen.nearness[:5], brute)
    assert select(judged, mixed, target, 1.0).kept.sum() == (~chosen.wrong).sum()
    for keep in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(InvalidArgument, match="over 0 and up to 1"):
            select(judged, mixed, target, keep)
