"""Which pictures each episode learns from and is asked: a rule that any language can replay, and its hashes.

Everything drawn is an order: names sorted by the SHA-256 of "SEED/PART/SET/NUMBER/NAME", where NAME is a class or a
picture's id ("class/file"). From the order of classes come the known ones and, behind them, the unknown ones; from
the order of a class's pictures the first are its examples, the last its queries. Episodes of one number share their
order over all shots, so that more shots mean more examples and, where the pictures suffice, the same queries.

`manifest.json` holds the seed, the ids of every set with a hash of its bytes, and a hash of what the rule draws: a
run whose pictures or draws differ is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from episodes.pictures import PictureSet

FILE = Path(__file__).with_name("manifest.json")
SEED = 20251
WAYS, QUERIES = 5, 15
HASHED = 50  # episodes of each part that the manifest's hashes cover
LARGEST_SHOT = 20

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Episode:
    """Rows of a set: examples and queries with the class number of each, and queries of no class."""

    supports: Rows
    support_classes: Rows
    queries: Rows
    query_classes: Rows
    strangers: Rows

    @property
    def n_classes(self) -> int:
        """Classes to be told apart."""
        return int(self.support_classes[-1]) + 1

    @property
    def asked(self) -> Rows:
        """Return all rows that no system may have seen."""
        return np.concatenate([self.queries, self.strangers])


@dataclass(frozen=True, slots=True)
class Part:
    """A kind of episode: known and unknown classes (0: all, none), queries a class, whether evenly many of each."""

    name: str
    ways: int = WAYS
    unknown: int = 0
    even: bool = True


FEW_WAY = Part("few-way")
ALL_WAY = Part("all-way", ways=0)
UNEVEN = Part("uneven", even=False)
UNKNOWN = Part("unknown", unknown=WAYS)
PARTS = (FEW_WAY, ALL_WAY, UNEVEN, UNKNOWN)


class Drawer:
    """Draws the episodes of a set."""

    def __init__(self, pictures: PictureSet, seed: int = SEED) -> None:
        self._set, self._seed = pictures, seed
        self._classes = pictures.classes

    def episode(self, part: Part, number: int, shots: int) -> Episode | None:
        """Return an episode, None where no class has a picture left to ask."""
        key = f"{self._seed}/{part.name}/{self._set.name}/{number}"
        names = _ordered(key, list(self._classes))
        # Where there are not enough classes for both, the known ones get the larger half.
        ways = min(part.ways or len(names), -(-len(names) // 2) if part.unknown else len(names))
        chosen, others = names[:ways], names[ways : ways + part.unknown]
        wanted = [QUERIES] * ways if part.even else _uneven(key, chosen)
        supports, asked = [], []
        for name, count in zip(chosen, wanted, strict=True):
            order = self._pictures(key, name)
            supports.append(order[:shots])
            asked.append(order[max(shots, len(order) - count) :])
        if not all(asked) or any(len(rows) < shots for rows in supports):
            return None
        return Episode(
            np.concatenate(supports).astype(np.intp),
            np.repeat(np.arange(ways), shots),
            np.concatenate(asked).astype(np.intp),
            np.repeat(np.arange(ways), [len(rows) for rows in asked]),
            np.array([row for name in others for row in self._pictures(key, name)[-QUERIES:]], dtype=np.intp),
        )

    def digest(self, part: Part, episodes: int = HASHED) -> str:
        """Return a hash of the ids that `episodes` draw at the most shots that the set allows, and at one."""
        whole = hashlib.sha256()
        for number in range(episodes):
            for shots in (1, 5):
                drawn = self.episode(part, number, shots)
                for rows in () if drawn is None else (drawn.supports, drawn.asked):
                    whole.update("\n".join(self._set.ids[row] for row in rows).encode() + b"\0")
        return whole.hexdigest()

    def _pictures(self, key: str, name: str) -> list[int]:
        rows = {self._set.ids[row]: row for row in self._classes[name]}
        return [rows[picture] for picture in _ordered(key, list(rows))]


def episodes(pictures: PictureSet, part: Part, count: int, shots: int) -> Iterator[Episode]:
    """Draw the first `count` episodes."""
    drawer = Drawer(pictures)
    for number in range(count):
        drawn = drawer.episode(part, number, shots)
        if drawn is not None:
            yield drawn


def _ordered(key: str, names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}/{name}".encode()).digest())


def _uneven(key: str, names: list[str]) -> list[int]:
    """Return queries for each class, in proportion to a draw from Dirichlet(2, ..., 2), the largest with QUERIES.

    Each weight is a sum of two exponential variables (Veilleux et al., 2021, arXiv:2204.11181 use Dirichlet(2)).
    """
    weights = [sum(-math.log(_share(f"{key}/{name}/weight {n}")) for n in range(2)) for name in names]
    return [max(1, round(QUERIES * weight / max(weights))) for weight in weights]


def _share(text: str) -> float:
    """Return a number in (0, 1] made of the first 52 bits of a hash."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") // 4096 + 1) / 2**52


def write(sets: list[PictureSet], strangers: PictureSet | None, path: Path = FILE) -> None:
    """Write the manifest of these sets."""
    found = {
        pictures.name: {
            "pictures": pictures.digest,
            "episodes": {part.name: Drawer(pictures).digest(part) for part in PARTS},
            "ids": {name: _files(pictures, rows) for name, rows in pictures.classes.items()},
        }
        for pictures in sets
    }
    document = {"rule": __doc__, "seed": SEED, "ways": WAYS, "queries": QUERIES, "hashed": HASHED, "sets": found}
    if strangers is not None:
        document["strangers"] = {strangers.name: strangers.digest}
    path.write_text(json.dumps(document, indent=1) + "\n")


def _files(pictures: PictureSet, rows: list[int]) -> str:
    return " ".join(pictures.ids[row].partition("/")[2] for row in rows)


def check(pictures: PictureSet, path: Path = FILE) -> str:
    """Return why a set is not the manifest's, "" if it is."""
    document = json.loads(path.read_text())
    entry = document["sets"].get(pictures.name)
    if entry is None:
        return "not in the manifest"
    if entry["pictures"] != pictures.digest:
        return "its pictures are not those of the manifest"
    drawn = {part.name: Drawer(pictures).digest(part) for part in PARTS}
    return "" if drawn == entry["episodes"] else "its episodes are not those of the manifest"
