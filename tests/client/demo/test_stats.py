"""Intervals that do not claim more than was seen."""

from __future__ import annotations

import pytest

from likewise.demo.stats import over_draws, wilson


def test_wilson_is_the_published_interval() -> None:
    rate = wilson(81, 263)  # Newcombe 1998, table I
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (0, 0)])
def test_wilson_stays_within_0_and_1_and_is_never_certain(hits: int, trials: int) -> None:
    rate = wilson(hits, trials)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.high > rate.low


def test_over_draws_is_students_t() -> None:
    rate = over_draws([0.4, 0.5, 0.6], 100)
    assert (rate.value, rate.high - rate.value) == pytest.approx((0.5, 4.303 * 0.1 / 3**0.5), abs=1e-3)


def test_equal_draws_fall_back_to_the_interval_over_their_trials() -> None:
    assert over_draws([1.0, 1.0], 50) == wilson(50, 50)
    assert over_draws([0.5], 40) == wilson(20, 40)
