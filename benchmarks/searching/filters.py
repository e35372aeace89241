"""The filters that are measured, as the store reads them and as arrays tell which rows they match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from searching.data import BUCKETS, Bool, Dataset

LABEL = 0
PERCENTS = (50.0, 10.0, 1.0, 0.1, 0.01)


@dataclass(frozen=True, slots=True)
class Filter:
    """A `where`, and the part of the rows that it is to match; None: as many as have the label."""

    name: str
    where: str
    percent: float | None = None

    def matching(self, data: Dataset) -> Bool:
        """Return which rows it matches, `(n,)`."""
        if self.percent is None:
            return np.asarray(data.label == LABEL)
        return np.asarray(data.bucket < round(self.percent / 100 * BUCKETS))


def label_of(number: int) -> str:
    """Return the label of a class."""
    return f"class-{number}"


FILTERS = [
    *(Filter(f"{percent:g} %", f"bucket < {round(percent / 100 * BUCKETS)}", percent) for percent in PERCENTS),
    Filter("a label", f"label = '{label_of(LABEL)}'"),
]
