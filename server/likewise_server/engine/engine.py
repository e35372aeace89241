"""The engine: everything the server does, on plain Python and NumPy, without a wire."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from likewise_server.backbones.backbone import Backbone
from likewise_server.batcher import Batcher, OnBatch
from likewise_server.engine.admission import Admission
from likewise_server.engine.classification import Heads
from likewise_server.engine.collections import Collections
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.workers import Workers
from likewise_server.errors import LikewiseError
from likewise_server.images import ImageLimits, guard
from likewise_server.store.types import Store

# Blocking calls are short reads, searches and waits for a commit; eight overlap them well on any machine.
WORKERS = 8
# Training, evaluating and checking take long; they must not keep the short calls waiting.
FITS = 2


@dataclass(slots=True)
class Engine:
    """Embedding, collections and heads over one store and one set of backbones."""

    embedder: Embedder
    collections: Collections
    heads: Heads
    store: Store
    batcher: Batcher
    workers: Workers
    fits: Workers

    async def ready(self) -> None:
        """Prove with one forward pass per backbone that each works. Raises what the first failing one raises."""
        for name, backbone in self.embedder.backbones.items():
            await self.batcher.learn_space(self.embedder.resolve(backbone.ref())[0], backbone.ref())
            if backbone.space(backbone.ref()) is None:
                raise RuntimeError(f"{name} has no space after its first forward")

    async def probe(self) -> None:
        """Run one blank image, so that a device that works again is found to."""
        backbone, ref = self.embedder.resolve(None)
        crop = backbone.preprocessing.crop
        with contextlib.suppress(LikewiseError):  # what matters is whether forwards succeed now
            await self.batcher.embed(backbone, ref, np.zeros((crop, crop, 3), np.uint8))

    def healthy(self) -> bool:
        """Return whether the device thread runs and the store takes writes."""
        return self.batcher.alive() and self.store.healthy()

    def close(self) -> None:
        """Finish what is queued, then let go of threads and data."""
        self.embedder.close()
        self.fits.close(wait=False)  # a fit may take minutes, and whoever asked for it is gone
        self.workers.close()
        self.store.close()


def build(
    backbones: Mapping[str, Backbone],
    store: Store,
    *,
    limits: ImageLimits,
    max_batch: int,
    decode_threads: int,
    queue_items: int,
    queue_bytes: int,
    on_batch: OnBatch,
) -> Engine:
    """Put an engine together. Call on the event loop that will use it."""
    guard(limits)
    # Many small products run at once here; a pool of BLAS threads under each would only make them wait for another.
    threadpool_limits(1, user_api="blas")
    batcher = Batcher(max_batch=max_batch, on_batch=on_batch)
    admission = Admission(max_items=queue_items, max_bytes=queue_bytes)
    embedder = Embedder(backbones, batcher, admission, limits=limits, decode_threads=decode_threads)
    workers, fits = Workers(WORKERS), Workers(FITS)
    return Engine(
        embedder,
        Collections(store, embedder, workers),
        Heads(store, embedder, workers, fits),
        store,
        batcher,
        workers,
        fits,
    )
