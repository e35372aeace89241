"""Rates with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t for 95 %, by degrees of freedom; above these it is close enough to the normal's.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131)
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Rate:
    """A share in 0..1 and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent} ({100 * self.low:.0f}-{100 * self.high:.0f})"

    @property
    def percent(self) -> str:
        """The share in percent."""
        return f"{100 * self.value:.1f} %"


def wilson(hits: int, trials: int) -> Rate:
    """Return the share of hits with Wilson's score interval (Wilson 1927)."""
    if not trials:
        return Rate(0.0, 0.0, 1.0)
    share = hits / trials
    scale = 1 + _Z**2 / trials
    middle = (share + _Z**2 / (2 * trials)) / scale
    half = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / scale
    # At 0 and 1 the ends are exact, which rounding must not miss.
    return Rate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def over_draws(values: Sequence[float], trials: int) -> Rate:
    """Return the mean over draws with Student's t interval; Wilson's over `trials` if they are all equal."""
    mean = sum(values) / len(values)
    if max(values) - min(values) < 1e-9:  # noqa: PLR2004  # equal draws would claim certainty
        return wilson(round(mean * trials), trials)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else _Z
    half = t * deviation / math.sqrt(len(values))
    return Rate(mean, max(0.0, mean - half), min(1.0, mean + half))
