"""Means over episodes with 95 % t-intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean, half its 95 % interval (None of a single value), and of how many values."""

    mean: float
    half: float | None
    n: int

    def percent(self) -> str:
        """Return "79.1 ± 0.5"."""
        return f"{100 * self.mean:.1f}" + ("" if self.half is None else f" ± {100 * self.half:.1f}")


def interval(values: Sequence[float]) -> Interval:
    """Return the mean with its t-interval."""
    from scipy.stats import t  # noqa: PLC0415

    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Interval(float(np.mean(values)), half, n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Return the difference, episode by episode, where both have a value."""
    return interval([ours[number] - theirs[number] for number in sorted(ours.keys() & theirs.keys())])
