"""How often the pictures found are the right ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np

from likewise.demo.indexing import Indexed
from likewise.demo.pictures import Picture, pixel_vectors
from likewise.demo.stats import Rate, wilson
from likewise.results import Hits

K = 5
MOST_QUERIES = 300


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """Shares of queries whose first hit, or one of the first five, is of the right class."""

    indexed: int
    queries: int
    hit_at_1: Rate
    hit_at_5: Rate
    pixels_at_1: Rate
    pixels_at_5: Rate
    chance_at_1: float
    chance_at_5: float
    by_change: dict[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A query and its hits."""

    query: Picture
    hits: Hits

    @property
    def right(self) -> bool:
        """Whether the first hit is of the query's class."""
        return bool(self.hits) and self.hits[0].label == self.query.label


def by_queries(indexed: Indexed, pixels: Indexed, queries: Sequence[Picture]) -> tuple[SearchFigures, list[Found]]:
    """Search with pictures that are not in the collection."""
    hits = indexed.collection.search_many([query.source for query in queries], k=K)
    hits_pixels = pixels.collection.search_many(vectors=pixel_vectors(queries), k=K)
    return _score(indexed, queries, hits, hits_pixels, left_out=0)


def leave_one_out(indexed: Indexed, pixels: Indexed, seed: int) -> tuple[SearchFigures, list[Found]]:
    """Search with pictures of the collection, each of which is left out of its own answer."""
    chosen = np.random.default_rng(seed).permutation(len(indexed.pictures))[:MOST_QUERIES]
    queries = [indexed.pictures[i] for i in chosen]
    ids = [query.id for query in queries]
    hits = indexed.collection.search_many(ids=ids, k=K)
    hits_pixels = pixels.collection.search_many(ids=ids, k=K)
    return _score(indexed, queries, hits, hits_pixels, left_out=1)


def _score(
    indexed: Indexed, queries: Sequence[Picture], hits: list[Hits], pixels: list[Hits], left_out: int
) -> tuple[SearchFigures, list[Found]]:
    found = [Found(query, answer) for query, answer in zip(queries, hits, strict=True)]
    found_pixels = [Found(query, answer) for query, answer in zip(queries, pixels, strict=True)]
    changes: dict[str, list[bool]] = defaultdict(list)
    for answer in found:
        if "change" in answer.query.attributes:
            changes[answer.query.attributes["change"]].append(answer.right)
    figures = SearchFigures(
        indexed=len(indexed.pictures),
        queries=len(queries),
        hit_at_1=_share(found, 1),
        hit_at_5=_share(found, K),
        pixels_at_1=_share(found_pixels, 1),
        pixels_at_5=_share(found_pixels, K),
        chance_at_1=_chance(indexed, queries, 1, left_out),
        chance_at_5=_chance(indexed, queries, K, left_out),
        by_change={change: wilson(sum(right), len(right)) for change, right in changes.items()},
    )
    return figures, found


def _share(found: list[Found], k: int) -> Rate:
    hits = sum(any(hit.label == answer.query.label for hit in answer.hits[:k]) for answer in found)
    return wilson(hits, len(found))


def _chance(indexed: Indexed, queries: Sequence[Picture], k: int, left_out: int) -> float:
    """Return the mean chance that k items drawn blindly hold one of the query's class."""
    counts, n = Counter(indexed.labels), len(indexed.pictures) - left_out
    k = min(k, n)
    misses = [comb(n - (counts[query.label] - left_out), k) / comb(n, k) for query in queries]
    return 1 - float(np.mean(misses))
