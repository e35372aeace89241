"""Serve eager at once, compile behind: finds or makes compiled features and swaps them in once they are proved."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch

from likewise_server.backbones import artifacts, compiler_process, compiling, graphs, precision
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef
from likewise_server.backbones.compiler_process import last_line
from likewise_server.backbones.replica import Forward
from likewise_server.errors import Internal
from likewise_server.pipeline.batcher import Batcher

log = structlog.get_logger()

WORTHWHILE = 512  # images of a feature that is not the default before it is compiled as well


class Compiler:
    """One background task; one feature at a time."""

    def __init__(self, batcher: Batcher, folder: Path, weights_dir: Path | None, max_batch: int) -> None:
        self._batcher = batcher
        self._folder = folder
        self._weights_dir = weights_dir
        self._max_batch = max_batch
        self._wanted: asyncio.Queue[tuple[Backbone, BackboneRef]] = asyncio.Queue()
        self._seen: set[BackboneRef] = set()
        self._pending: set[BackboneRef] = set()
        self._used: Counter[BackboneRef] = Counter()
        self._task = asyncio.create_task(self._run())

    def want(self, backbone: Backbone, ref: BackboneRef) -> None:
        """Compile a feature, once, after those asked for before."""
        if ref not in self._seen:
            self._seen.add(ref)
            self._pending.add(ref)
            self._wanted.put_nowait((backbone, ref))

    def note(self, backbone: Backbone, ref: BackboneRef, images: int) -> None:
        """Count images of a feature; one that is used much is compiled too."""
        if ref in self._seen:
            return
        self._used[ref] += images
        if self._used[ref] >= WORTHWHILE:
            self.want(backbone, ref)

    def pending(self, ref: BackboneRef) -> bool:
        """Return whether a feature is being compiled, or waits for it."""
        return ref in self._pending

    async def join(self) -> None:
        """Wait until all that was wanted is compiled or given up."""
        await self._wanted.join()

    async def close(self) -> None:
        """Stop, and the compiler with it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            backbone, ref = await self._wanted.get()
            try:
                await self._one(backbone, ref)
            except Exception as error:  # noqa: BLE001  # eager mode goes on, and the log says why
                log.warning(
                    "not compiled, staying eager", feature=str(ref), why=last_line(str(error)) or type(error).__name__
                )
            finally:
                self._pending.discard(ref)
                self._wanted.task_done()

    async def _one(self, backbone: Backbone, ref: BackboneRef) -> None:
        started = time.monotonic()
        key = artifacts.key_of(backbone, ref, backbone.threads)
        found = await asyncio.to_thread(artifacts.find, self._folder, key)
        origin = "disk"
        if found is None:
            log.info("compiling", feature=str(ref))
            await compiler_process.run(backbone, ref, self._weights_dir, self._folder, self._max_batch)
            found = await asyncio.to_thread(artifacts.find, self._folder, key)
            origin = "compiler"
        if found is None:
            raise RuntimeError("the compiler kept nothing under the name that was expected")
        code, facts = found
        forwards = []
        for index, replica in enumerate(backbone.replicas):
            forward = await asyncio.to_thread(compiling.load, code, replica.device)
            ready = partial(_ready, backbone, ref, forward, index, self._max_batch)
            forwards.append(await self._batcher.on_device(index, ready))
        backbone.swap(ref, forwards, facts.best_batch)
        log.info(
            "compiled",
            feature=str(ref),
            origin=origin,
            seconds=round(time.monotonic() - started, 1),
            best_batch=facts.best_batch,
            images_per_s=facts.images_per_s,
        )


def _ready(backbone: Backbone, ref: BackboneRef, forward: Forward, device: int, max_batch: int) -> Forward:
    """Return what will run, after it has been proved. In the device's thread."""
    replica = backbone.replicas[device]
    forward = graphs.recorded(forward, replica.device, backbone.preprocessing.crop, max_batch)
    _prove(backbone, ref, forward, device)
    return forward


def _prove(backbone: Backbone, ref: BackboneRef, forward: Forward, device: int) -> None:
    """Compare with the eager vectors of real pictures, also one alone. Raises Internal if they differ."""
    replica = backbone.replicas[device]
    pictures = precision.probes(backbone.preprocessing)
    eager = replica.launch(list(pictures), ref, eager=True)()
    with torch.inference_mode():
        batch = torch.from_numpy(pictures).to(replica.device)
        compiled = np.concatenate([forward(batch[:1]).cpu().numpy(), forward(batch[1:]).cpu().numpy()])
    cosine = precision.least_cosine(eager, compiled)
    if cosine < precision.LEAST_COSINE:
        raise Internal(f"compiled vectors differ from eager ones: cosine {cosine:.5f}")
