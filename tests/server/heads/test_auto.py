from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.heads import HeadOptions, evaluate, kinds, train
from likewise_server.heads.auto import choose
from likewise_server.heads.base import Problem, unit_rows

Data = tuple[NDArray[np.float32], list[str], list[str]]


def problem(sizes: list[int], noise: float, **options: object) -> Problem:
    y = np.repeat(np.arange(len(sizes)), sizes)
    X = np.eye(12)[y] + noise * np.random.default_rng(0).normal(size=(len(y), 12))
    return Problem(unit_rows(X), y, len(sizes), HeadOptions.parse("auto", options))


MEAN = np.full(12, 0.1)


@pytest.mark.parametrize(
    ("sizes", "mean", "kind", "centred", "because"),
    [
        ([4], MEAN, "ncm", False, "with one class"),
        ([1, 1, 1], None, "ridge", False, "most classes have one example"),
        ([1, 1, 1, 9], MEAN, "ridge", True, "most classes have one example"),
        ([2, 2, 2], None, "lda", False, "most classes have two examples"),
        ([2, 2, 1], MEAN, "lda", True, "most classes have two examples"),
        ([5, 5, 5], MEAN, "lda", False, "under 10 examples"),
        ([1, 40, 40], MEAN, "lda", False, "under 10 examples"),
    ],
)
def test_auto_goes_by_rule_where_there_is_too_little_to_compare(
    sizes: list[int], mean: NDArray[np.float64] | None, kind: str, centred: bool, because: str
) -> None:
    choice = choose(problem(sizes, 0.1), mean)
    assert (choice.kind, choice.center) == (kind, centred)
    assert because in choice.reason


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 2, 2], [5, 5, 5], [12, 12, 12]])
def test_auto_centres_when_told_to_and_only_then(sizes: list[int]) -> None:
    assert choose(problem(sizes, 0.1, center=True), MEAN).center
    assert not choose(problem(sizes, 0.1, center=False), MEAN).center


def test_auto_keeps_lda_unless_another_is_clearly_better_and_lists_the_candidates() -> None:
    choice = choose(problem([12, 12, 12], 0.01), None)
    assert choice.kind == "lda"
    for kind in ("ncm", "lda", "ridge", "logreg", "knn"):
        assert f"{kind} 0." in choice.reason
    assert "and 100.0%" in choice.reason
    assert "3-fold cross-validation on 36 examples" in choice.reason


def test_auto_takes_neighbours_where_classes_have_several_looks(digits: Data) -> None:
    X, labels, ids = digits
    parity = ["odd" if int(label) % 2 else "even" for label in labels]
    head = train(X[:600], parity[:600], ids[:600])
    assert head.kind == "knn"
    assert "clearly smaller loss than lda" in head.reason
    lda = train(X[:600], parity[:600], ids[:600], kind="lda")
    found = [evaluate(one, X[600:], parity[600:], reject=False).accuracy or 0.0 for one in (head, lda)]
    assert found[0] > found[1] + 0.03


def test_auto_leaves_logreg_out_where_it_would_take_long(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise_server.heads.auto.MAX_LOGREG", 1000)
    monkeypatch.setattr("likewise_server.heads.auto.MAX_NUMBERS", 64 * 150)
    head = train(digits[0][:300], digits[1][:300], digits[2][:300])
    assert "not tried: logreg, for its cost" in head.reason
    assert "logreg 0." not in head.reason
    compared = int(head.reason.partition("cross-validation on ")[2].partition(" ")[0])
    assert 100 < compared <= 150


@pytest.mark.parametrize("n", [60, 150])
def test_auto_is_no_worse_than_the_candidates_on_digits(digits: Data, n: int) -> None:
    X, labels, ids = digits
    found = {}
    for kind in {"auto", "ncm", "knn", "lda", "ridge", "logreg"} & set(kinds()):
        head = train(X[:n], labels[:n], ids[:n], kind=kind)
        found[kind] = evaluate(head, X[n:], labels[n:], reject=False).accuracy or 0.0
    assert found["auto"] >= max(found.values()) - 0.03


def test_auto_beats_the_nearest_mean_on_photographs(photos: Data) -> None:
    X, labels, ids = photos
    species = np.array(labels)
    rows = np.concatenate([np.flatnonzero(species == name)[:5] for name in np.unique(species)])
    rest = np.setdiff1d(np.arange(len(species)), rows)
    found = {}
    for kind in ("auto", "ncm"):
        head = train(X[rows], list(species[rows]), [ids[i] for i in rows], kind=kind)
        found[kind] = evaluate(head, X[rest], list(species[rest]), reject=False).accuracy or 0.0
    assert found["auto"] > 0.8
    assert found["auto"] >= found["ncm"] - 0.02
