"""Figures as reports give them: percentiles, ratios beside what is promised, cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MANY = 1000  # from here on, nobody reads decimals
MARKS = {True: "pass", False: "FAIL", None: ""}


@dataclass(frozen=True, slots=True)
class Ratio:
    """One promise: `value` is None where there was nothing to measure, `target` where nothing is promised."""

    name: str
    value: float | None
    sign: str = "≥"
    target: float | None = None

    @property
    def passed(self) -> bool | None:
        """Return whether the promise is kept, None where that is no question."""
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.sign == "≥" else self.value <= self.target

    def verdict(self) -> str:
        """Return the value, the target and which of them won."""
        if self.value is None:
            return "-"
        target = f" {self.sign}{self.target:g} {MARKS[self.passed]}" if self.target is not None else ""
        value = f"{self.value:.0f}" if self.value >= MANY else f"{self.value:.2f}"
        return f"{value}{target}"

    def facts(self) -> dict[str, Any]:
        """Return what goes into the report."""
        return {**asdict(self), "passed": self.passed}


def over(a: float | None, b: float | None) -> float | None:
    """Return a / b, None where either is missing or there is nothing to divide by."""
    return a / b if a is not None and b else None


def percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    """Return a percentile in milliseconds, None of nothing."""
    return float(np.percentile(seconds, percent)) * 1e3 if seconds else None


def section(title: str, rows: Iterable[tuple[str, Sequence[str]]], width: int, column: int) -> list[str]:
    """Return the lines of one part of a table, none where it has no rows."""
    body = [f"  {name:{width - 2}}" + "".join(f"{cell:>{column}}" for cell in cells) for name, cells in rows]
    return ["", title, *body] if body else []
