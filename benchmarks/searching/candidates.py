"""Configurations of plain FAISS that are tried, and what can be turned on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import faiss

PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
EF_SEARCH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
K_FACTORS = (2, 4, 8, 16, 32, 64)  # how many times k come out of the codes to be compared in full
QUERY_BITS = (4, 8)  # of RaBitQ; 8 is FAISS's own choice
LISTS = ((50_000, 256), (150_000, 512), (500_000, 1024), (2_000_000, 4096))
MOST_LISTS = 8192


@dataclass(frozen=True, slots=True)
class Candidate:
    """A factory string, the knob that is turned up until recall suffices, and those that are tried beside it."""

    factory: str
    rising: tuple[str, tuple[int, ...]] | None = None
    beside: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def sides(self) -> Iterator[dict[str, int]]:
        """Yield every setting of the knobs beside."""
        names = [name for name, _ in self.beside]
        for values in product(*(values for _, values in self.beside)):
            yield dict(zip(names, values, strict=True))


def lists_for(n: int) -> int:
    """Return how many lists an IVF index of `n` rows gets."""
    return next((lists for most, lists in LISTS if n < most), MOST_LISTS)


def candidates(n: int, dim: int) -> list[Candidate]:
    """Return what is tried for `n` rows. Codes get 1 or half a bit for each dimension, and full comparison after."""
    lists = lists_for(n)
    probes = ("nprobe", tuple(value for value in PROBES if value <= lists))
    again = (("k_factor_rf", K_FACTORS),)
    return [
        Candidate("Flat"),
        Candidate(f"IVF{lists},Flat", probes),
        Candidate("HNSW32", ("efSearch", EF_SEARCH)),
        Candidate(f"IVF{lists},RaBitQ,RFlat", probes, (*again, ("qb", QUERY_BITS))),
        Candidate(f"IVF{lists},RaBitQfs,RFlat", probes, again),
        Candidate(f"IVF{lists},PQ{dim // 8}x4fs,RFlat", probes, again),
        Candidate(f"IVF{lists},PQ{dim // 4}x4fs,RFlat", probes, again),
    ]


def turn(index: Any, name: str, value: int) -> None:
    """Set a knob of an index."""
    if name == "qb":  # not among the parameters that FAISS sets by name
        base: Any = faiss.downcast_index(index.base_index)
        base.qb = value
    else:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
