"""Vectors that a search finds about as hard as embeddings of images, drawn by a seed.

The recipe, of which `python -m searching.hardness` shows what it does beside real embeddings:

- LATENT directions of falling variance (the j-th has that of (j + 1) ** -DECAY), turned into all dimensions at
  random: embeddings live near such a subspace, not in all of their dimensions;
- cluster centres drawn there, one for every ROWS_PER_CENTRE rows between the least and the most, whose sizes are
  log-normal with SIZES: a few classes have most of the pictures;
- around a centre, rows spread in the same directions, by a log-normal width of each cluster's own, so that some are
  tight and some run into their neighbours;
- a common offset OFFSET (embeddings are a cone, not a sphere), noise NOISE in all dimensions, then length 1.

Queries are drawn alike and are no rows. Rows stand in random order of clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from searching.data import BLOCK, Float32, Int64, new_array, unit
from searching.plan import Plan

LATENT = 96
DECAY = 0.6
ROWS_PER_CENTRE = 250
LEAST, MOST = 64, 4000
SIZES = 1.2
WIDTH, WIDTHS = 0.75, 0.35  # of a cluster, beside the centres' spread of 1, and how unlike they are
OFFSET = 0.8
NOISE = 0.25


@dataclass(frozen=True, slots=True)
class World:
    """What rows and queries are drawn from."""

    basis: Float32  # (latent, dim), each direction as long as it varies
    centres: Float32  # (centres, latent)
    shares: Float32  # of the rows, by centre
    widths: Float32
    offset: Float32  # (dim,)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Float32, Int64]:
        """Return rows, `(count, dim)` of length 1, and the cluster of each."""
        latent, dim = self.basis.shape
        clusters = np.searchsorted(np.cumsum(self.shares)[:-1], rng.random(count, np.float32)).astype(np.int64)
        spread = rng.standard_normal((count, latent), np.float32) * self.widths[clusters, None]
        rows = (self.centres[clusters] + spread) @ self.basis + self.offset
        rows += rng.standard_normal((count, dim), np.float32) * np.float32(NOISE / dim**0.5)
        return unit(rows), clusters


def world(n: int, dim: int, seed: int) -> World:
    """Return what a seed makes of the recipe, for `n` rows."""
    rng = np.random.default_rng([seed, 0])
    count = int(np.clip(n // ROWS_PER_CENTRE, LEAST, MOST))
    latent = min(LATENT, dim)
    scale = (np.arange(latent) + 1.0) ** (-DECAY / 2)
    scale /= np.linalg.norm(scale)
    turned, _ = np.linalg.qr(rng.standard_normal((dim, latent)))
    sizes = rng.lognormal(0.0, SIZES, count)
    offset = rng.standard_normal(dim)
    return World(
        np.asarray(scale[:, None] * turned.T, np.float32),
        rng.standard_normal((count, latent), np.float32),
        np.asarray(sizes / sizes.sum(), np.float32),
        np.asarray(WIDTH * rng.lognormal(0.0, WIDTHS, count), np.float32),
        np.asarray(OFFSET * offset / np.linalg.norm(offset), np.float32),
    )


def write(plan: Plan) -> None:
    """Write rows, clusters and queries, block by block."""
    source = world(plan.n, plan.dim, plan.seed)
    rows = new_array(plan.folder / "rows.npy", plan.n, plan.dim)
    clusters = np.empty(plan.n, np.int32)
    for first in range(0, plan.n, BLOCK):
        last = min(first + BLOCK, plan.n)
        block = source.draw(last - first, np.random.default_rng([plan.seed, 1, first]))
        rows[first:last], clusters[first:last] = block
    rows.flush()  # type: ignore[attr-defined]  # it is a memory map
    np.save(plan.folder / "clusters.npy", clusters)
    np.save(plan.folder / "queries.npy", source.draw(plan.queries, np.random.default_rng([plan.seed, 2]))[0])
