"""The engine: everything the server does, on plain Python and NumPy, without a wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from threadpoolctl import threadpool_limits

from likewise_server.backbones.backbone import Backbone
from likewise_server.engine.admission import Admission, Cost
from likewise_server.engine.classification import Heads
from likewise_server.engine.collections import Collections
from likewise_server.engine.compiler import Compiler
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.health import Health
from likewise_server.engine.precedence import Precedence
from likewise_server.engine.ranking import Rankings
from likewise_server.engine.searching import Searches
from likewise_server.engine.training import Training
from likewise_server.engine.workers import Workers
from likewise_server.errors import InvalidArgument
from likewise_server.images import Decoding, ImageLimits, guard
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.decoders import CpuDecode, Decode, GpuDecode
from likewise_server.pipeline.isolation import IsolatedDecode
from likewise_server.pipeline.observer import Observer
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
    searches: Searches
    heads: Heads
    training: Training
    rankings: Rankings
    store: Store
    batcher: Batcher
    workers: Workers
    fits: Workers
    compiler: Compiler | None
    health: Health

    async def ready(self) -> None:
        """Prove with one forward pass per backbone that each works. Raises what the first failing one raises."""
        for name, backbone in self.embedder.backbones.items():
            await self.batcher.learn_space(self.embedder.resolve(backbone.ref())[0], backbone.ref())
            if backbone.space(backbone.ref()) is None:
                raise RuntimeError(f"{name} has no space after its first forward")

        if self.compiler:
            for backbone in self.embedder.backbones.values():
                self.compiler.want(backbone, backbone.ref())

    async def stop_compiling(self) -> None:
        """End the compiler, if one runs."""
        if self.compiler:
            await self.compiler.close()

    def close(self) -> None:
        """Finish what is queued, then let go of threads and data."""
        self.embedder.close()
        self.fits.close(wait=False)  # a fit may take minutes, and whoever asked for it is gone
        self.workers.close()
        self.store.close()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done at once; see the settings of the same names."""

    max_batch: int = 32
    decode_threads: int = 1
    decode_in: Literal["threads", "processes"] = "threads"
    decode_timeout_s: float = 30.0
    queue_items: int = 4096
    queue_bytes: int = 512 * 2**20
    queue_pixels: int = 4_000_000_000
    queue_interactive: int = 48
    interactive_wait_s: float = 0.1
    cache_bytes: int = 0


def build(
    backbones: Mapping[str, Backbone],
    store: Store,
    *,
    limits: ImageLimits,
    decoding: Decoding,
    sizes: Sizes,
    observer: Observer,
    compile_into: Path | None,
    weights_dir: Path | None,
) -> Engine:
    """Put an engine together. Call on the event loop that will use it. Without `compile_into`, all runs eager."""
    guard(limits)
    # Many small products run at once here; a pool of BLAS threads under each would only make them wait for another.
    threadpool_limits(1, user_api="blas")
    devices = [str(replica.device) for replica in next(iter(backbones.values())).replicas]
    batcher = Batcher(
        _decode(decoding, limits, next(iter(backbones.values())).replicas[0].device, sizes),
        devices=devices,
        max_batch=sizes.max_batch,
        decode_threads=sizes.decode_threads,
        cache=EmbeddingCache(sizes.cache_bytes),
        observer=observer,
    )
    compiler = Compiler(batcher, compile_into, weights_dir, sizes.max_batch) if compile_into else None
    admission = Admission(
        Cost(sizes.queue_items, sizes.queue_bytes, sizes.queue_pixels),
        least=sizes.queue_interactive,
        wait_s=sizes.interactive_wait_s,
    )
    embedder = Embedder(backbones, batcher, admission, max_pixels=limits.max_pixels, compiler=compiler)
    workers, fits = Workers(WORKERS), Workers(FITS)
    heads = Heads(store, embedder, workers, fits)
    precedence = Precedence()
    return Engine(
        embedder,
        Collections(store, embedder, workers, precedence),
        Searches(store, embedder, workers, precedence),
        heads,
        Training(heads, store, embedder, workers, fits),
        Rankings(store, embedder, workers, fits),
        store,
        batcher,
        workers,
        fits,
        compiler,
        Health(embedder, batcher, store),
    )


def _decode(decoding: Decoding, limits: ImageLimits, device: torch.device, sizes: Sizes) -> Decode:
    """Return what decodes. Raises InvalidArgument for nvJPEG without a GPU, or in processes."""
    if sizes.decode_in == "processes":
        if decoding == "nvjpeg":
            raise InvalidArgument("decoding=nvjpeg is done on the GPU, by this process: leave decode_in at threads")
        return IsolatedDecode(limits, decoding, workers=sizes.decode_threads, timeout_s=sizes.decode_timeout_s)
    if decoding != "nvjpeg":
        return CpuDecode(limits, decoding)
    if device.type != "cuda":
        raise InvalidArgument(f"decoding=nvjpeg needs a GPU and the device is {device}: use scaled or full")
    return GpuDecode(limits, device)
