"""What must be true of a server that was killed: each item as it was acknowledged, and searches by brute force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

DIM = 32
UNKNOWN = -1  # the number of a vector that an item should not have
CLOSE = 1e-4  # by which scores and the vectors of pictures may differ

Float32: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stored:
    """An item: `number` gives its vector, or is that of its picture."""

    number: int
    label: str | None


State: TypeAlias = Stored | None  # None: there is no such item


def vector_of(number: int) -> Float32:
    """Return the vector with this number, (DIM,) float32."""
    return np.random.default_rng(number).normal(size=DIM).astype(np.float32)


class Model:
    """The items of one collection. One whose write was never answered may be as before or as after it."""

    def __init__(self) -> None:
        self._possible: dict[str, set[State]] = {}

    def begin(self, wanted: Mapping[str, State]) -> None:
        """Note that a write is sent."""
        for item_id, state in wanted.items():
            self._possible[item_id] = self._possible.get(item_id, {None}) | {state}

    def acknowledge(self, wanted: Mapping[str, State]) -> None:
        """Note that it was answered."""
        for item_id, state in wanted.items():
            self._possible[item_id] = {state}

    def known(self, prefix: str) -> dict[str, State]:
        """Return the items with ids that begin so, of which there is no doubt."""
        sure = {item_id: next(iter(states)) for item_id, states in self._possible.items() if len(states) == 1}
        return {
            item_id: state
            for item_id, state in sure.items()
            if item_id.startswith(prefix) and (state is None or state.number != UNKNOWN)
        }

    def numbers(self, item_id: str) -> set[int]:
        """Return the numbers of the vectors that an item may have."""
        return {state.number for state in self._possible.get(item_id, ()) if state and state.number != UNKNOWN}

    def settle(self, found: Mapping[str, Stored]) -> dict[str, list[str]]:
        """Compare with what there is, which from now on is the truth; return what is lost, risen again or changed."""
        wrong: dict[str, list[str]] = {"lost": [], "resurrected": [], "changed": []}
        for item_id in sorted(self._possible.keys() | found.keys()):
            states, state = self._possible.get(item_id, {None}), found.get(item_id)
            if state not in states:
                kind = "lost" if state is None else "resurrected" if states == {None} else "changed"
                wrong[kind].append(f"{item_id}: {state}, expected {states}")
            self._possible[item_id] = {state}
        return wrong


def nearest(rows: Float32, query: Float32, k: int) -> list[tuple[int, float]]:
    """Return the rows with the largest cosine to a query and these, nearest first, by comparing all."""
    wide, asked = rows.astype(np.float64), query.astype(np.float64)
    scores = wide @ asked / (np.linalg.norm(wide, axis=1) * np.linalg.norm(asked))
    return [(int(row), float(scores[row])) for row in np.argsort(-scores)[:k]]


def wrong_hits(hits: Iterable[Any], ids: list[str], rows: Float32, query: Float32, k: int) -> str:
    """Return what is wrong with the hits of a search among these rows, empty if nothing is."""
    got = [(hit.id, hit.score) for hit in hits]
    expected = nearest(rows, query, k) if len(rows) else []
    if len(got) != len(expected) or len(dict(got)) != len(got):
        return f"{len(got)} hits of {len(dict(got))} items, {len(expected)} expected"
    true = dict(zip(ids, (score for _, score in sorted(nearest(rows, query, len(rows)))), strict=True))
    for (item_id, score), (_, best) in zip(got, expected, strict=True):
        if abs(true.get(item_id, np.inf) - score) > CLOSE or abs(score - best) > CLOSE:
            return f"{item_id} with {score:.6f}, where {best:.6f} is the best and its own is {true.get(item_id)}"
    return ""
