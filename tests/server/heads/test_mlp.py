from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from likewise_server.errors import InvalidArgument
from likewise_server.heads import TrainedHead, evaluate, train

Data = tuple[NDArray[np.float32], list[str], list[str]]


def fit(data: Data, n: int, **options: Any) -> TrainedHead:
    return train(data[0][:n], data[1][:n], data[2][:n], kind="mlp", options=options)


def accuracy(head: TrainedHead, data: Data) -> float:
    found = evaluate(head, data[0][900:], data[1][900:], reject=False).accuracy
    assert found is not None
    return found


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_it_learns_digits_and_measures_itself(digits: Data, schedule: str) -> None:
    head = fit(digits, 300, schedule=schedule)
    truth = accuracy(head, digits)
    assert truth > 0.9
    assert head.metrics.accuracy_low is not None
    assert head.metrics.accuracy_high is not None
    assert head.metrics.accuracy_low - 0.02 <= truth <= head.metrics.accuracy_high + 0.02


def test_it_bends_where_a_line_cannot() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 2, size=(300, 2)) * 2 - 1
    X = np.hstack([corners + 0.3 * rng.normal(size=(300, 2)), np.ones((300, 1))])
    labels = ["same" if a == b else "other" for a, b in corners]
    ids = [f"{i:03d}" for i in range(300)]
    right = {}
    for kind in ("ridge", "mlp"):
        head = train(X[:200], labels[:200], ids[:200], kind=kind)
        right[kind] = evaluate(head, X[200:], labels[200:], reject=False).accuracy or 0.0
    assert right["mlp"] > 0.95
    assert right["ridge"] < 0.75


def test_a_seed_gives_the_same_bits_and_another_one_others(digits: Data) -> None:
    torch.manual_seed(1)
    one = fit(digits, 60, epochs=5).to_bytes()
    state = torch.get_rng_state()
    other = fit(digits, 60, epochs=5)
    assert other.to_bytes() == one
    assert torch.equal(torch.get_rng_state(), state), "the generator of the process is left alone"
    assert fit(digits, 60, epochs=5, seed=1).to_bytes() != one


def test_it_stops_early_and_keeps_the_best_epoch(digits: Data) -> None:
    # With so large a rate nothing after the first epoch is better.
    wild, first = (fit(digits, 200, learning_rate=30, epochs=epochs) for epochs in (10, 1))
    np.testing.assert_array_equal(wild.scorer.arrays()["W1"], first.scorer.arrays()["W1"])
    # Patience of one ends within few epochs where two hundred would go on learning.
    short, long = fit(digits, 200, patience=1, dropout=0.9), fit(digits, 200, patience=200, dropout=0.9)
    assert not np.array_equal(short.scorer.arrays()["W1"], long.scorer.arrays()["W1"])


def test_options_shape_the_network(digits: Data) -> None:
    head = fit(digits, 60, hidden=7, epochs=3)
    shapes = {name: array.shape for name, array in head.scorer.arrays().items()}
    assert shapes == {"W1": (64, 7), "b1": (7,), "W2": (7, 10), "b2": (10,)}
    assert all(array.dtype == np.float64 for array in head.scorer.arrays().values())
    heavy, light = fit(digits, 60, weight_decay=50.0), fit(digits, 60, weight_decay=0.0)
    assert np.abs(heavy.scorer.arrays()["W1"]).mean() < 0.5 * np.abs(light.scorer.arrays()["W1"]).mean()
    assert fit(digits, 60, dropout=0).options["dropout"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1}, "not 1"),
        ({"hidden": 0}, "from 1 up"),
        ({"weight_decay": -1}, "0 or more"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"schedule": "linear"}, "'cosine' or 'plateau'"),
        ({"epochs": 1.5}, "whole number"),
        ({"patience": 0}, "from 1 up"),
    ],
)
def test_options_out_of_range_are_refused(digits: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        fit(digits, 20, **options)


def test_training_turns_gradients_on_for_its_own_thread_only(digits: Data) -> None:
    heads: list[TrainedHead] = []

    def run() -> None:
        with torch.inference_mode():
            heads.append(fit(digits, 60, epochs=5))
            assert torch.is_inference_mode_enabled()

    with torch.inference_mode():
        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            assert torch.is_inference_mode_enabled()
            thread.join(0.005)
    assert heads[0].to_bytes() == fit(digits, 60, epochs=5).to_bytes()


def test_balanced_weights_help_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(220, 3)) + np.r_[np.tile([2.0, 0, 0], (200, 1)), np.tile([0.5, 1, 0], (20, 1))]
    labels, ids = ["often"] * 200 + ["rare"] * 20, [f"{i:03d}" for i in range(220)]
    found = []
    for options in ({}, {"class_weight": "balanced"}):
        head = train(X, labels, ids, kind="mlp", options=options)
        found.append(sum(p.best == "rare" for p in head.predict(X[200:])))
    assert found[1] > found[0]
