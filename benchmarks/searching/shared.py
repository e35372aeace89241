"""Real embeddings: the shared images through likewise-tiny, and as many more like them as are asked for.

python -m searching.shared OUT

A row beyond the images is one of them plus the difference of two others times a log-normal factor around SPREAD:
noise that has the covariance of real embeddings, so that it stays where embeddings are. Some images are queries only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from searching.data import BLOCK, Float32, new_array, unit
from searching.plan import Plan

SUFFIXES = {".jpg", ".jpeg", ".png"}
BATCH = 32
SPREAD, SPREADS = 0.35, 0.5
HELD_OUT = 0.1  # of the images, whose like is only asked for


def main() -> None:
    """Write the embeddings of all shared images."""
    np.save(Path(sys.argv[1]), np.concatenate(list(_embedded())))


def _embedded() -> Iterator[Float32]:
    from embedding.images import SHARED  # noqa: PLC0415  # only this process, which ends, needs torch
    from likewise_server.backbones import registry  # noqa: PLC0415
    from likewise_server.errors import LikewiseError  # noqa: PLC0415
    from likewise_server.images import ImageLimits, guard, pixels_of  # noqa: PLC0415

    paths = sorted(path for path in (SHARED / "data").rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit("no images: set LIKEWISE_SHARED")
    limits = ImageLimits()
    guard(limits)
    device = registry.choose_devices("cpu")[0]
    backbone = registry.load("likewise-tiny", weights_dir=None, device=device, precision="fp32")
    pixels = []
    for path in paths:
        try:
            pixels.append(pixels_of(path.read_bytes(), backbone.preprocessing, limits, backbone.decoding))
        except LikewiseError as error:  # some of the shared files are odd on purpose
            print(f"{path.name}: {error}", file=sys.stderr)
        if len(pixels) == BATCH or (pixels and path == paths[-1]):
            yield np.asarray(backbone.launch(pixels, backbone.ref(), 0)(), np.float32)
            pixels = []


def write(plan: Plan, embeddings: Path) -> None:
    """Write rows, clusters (the image that a row began with) and queries, block by block."""
    images = unit(np.unique(np.load(embeddings), axis=0))
    np.random.default_rng([plan.seed, 0]).shuffle(images)
    held = int(len(images) * HELD_OUT)
    base, asked = images[held:], images[:held]
    rows = new_array(plan.folder / "rows.npy", plan.n, images.shape[1])
    clusters = np.resize(np.arange(len(base), dtype=np.int32), plan.n)
    for first in range(0, plan.n, BLOCK):
        last = min(first + BLOCK, plan.n)
        rng = np.random.default_rng([plan.seed, 1, first])
        rows[first:last] = _varied(base, clusters[first:last], base, rng)
        own = max(0, min(len(base), last) - first)
        rows[first : first + own] = base[first : first + own]
    rows.flush()  # type: ignore[attr-defined]  # it is a memory map
    np.save(plan.folder / "clusters.npy", clusters)
    picked = np.resize(np.arange(len(asked), dtype=np.int32), plan.queries)
    rng = np.random.default_rng([plan.seed, 2])
    queries = _varied(asked, picked, base, rng)
    queries[: len(asked)] = asked[: plan.queries]
    rng.shuffle(queries)  # those that tune and those that are timed must be alike
    np.save(plan.folder / "queries.npy", queries)


def _varied(images: Float32, picked: np.ndarray, others: Float32, rng: np.random.Generator) -> Float32:
    a, b = rng.integers(0, len(others), (2, len(picked)))
    factor = np.asarray(SPREAD * rng.lognormal(0.0, SPREADS, (len(picked), 1)), np.float32)
    return unit(images[picked] + factor * (others[a] - others[b]))


if __name__ == "__main__":
    main()
