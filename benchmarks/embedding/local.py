"""The ceiling: what one process reaches without a server, decoding in threads ahead of full forward passes. A worker.

python -m embedding.local NAME WEIGHTS_DIR PRECISION DATA_DIR
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from common.answering import Answers
from embedding.images import photographs, tagged
from likewise_server.backbones import artifacts, compiling, registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.images import ImageLimits, guard, pixels_of

AHEAD = 4  # batches decoded or being decoded while one is in the network


def best_backbone(name: str, weights_dir: Path, precision: str, data_dir: Path) -> Backbone:
    """Return the backbone in the form that a server with these settings and this data directory runs: compiled,
    if that server has kept compiled code, else eager.
    """  # noqa: D205  # one sentence needs two lines
    devices = registry.choose_devices("cpu")
    backbone = registry.load(name, weights_dir=weights_dir, device=devices[0], precision=precision)
    for device in devices[1:]:
        backbone.replicate(device)
    ref = backbone.ref()
    key = artifacts.key_of(backbone, ref, backbone.threads)
    found = next(filter(None, (artifacts.find(folder, key) for folder in data_dir.glob("*/"))), None)
    if found is not None:
        code, facts = found
        backbone.swap(ref, [compiling.load(code, device) for device in devices], facts.best_batch)
    return backbone


def main() -> None:
    """Load the backbone and answer requests for ceilings, pieces and single vectors."""
    answers = Answers()
    name, weights, precision, data = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    local = Local(best_backbone(name, weights, precision, data))
    answers.serve(
        {"ceiling": local.ceiling, "pieces": local.pieces, "vector": local.vector},
        {"precision": local.backbone.precision, "compiled": local.backbone.compiled(local.backbone.ref())},
    )


class Local:
    """One backbone in this process, with the server's own functions around it."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._limits = ImageLimits()
        guard(self._limits)
        self._images = photographs().data
        # As in the server: copies of the network share the cores, each with a thread of its own.
        self._devices = [
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(backbone.threads,))
            for _ in backbone.replicas
        ]
        # As the server's decoding threads: no pool of threads under each.
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, initializer=threadpool_limits, initargs=(1, "openmp"))

    def ceiling(self, images: int, batch: int) -> dict[str, Any]:
        """Embed so many images, decoding ahead in all cores, forwards on all copies at once, and return the rate."""
        batches, lock = self._batches(images, batch), threading.Lock()

        def run(copy: int) -> None:
            while True:
                with lock:
                    pixels = next(batches, None)
                if pixels is None:
                    return
                self._forward(pixels, copy)

        started = time.perf_counter()
        for done in [device.submit(run, copy) for copy, device in enumerate(self._devices)]:
            done.result()
        return {"images": images, "seconds": time.perf_counter() - started}

    def pieces(self, images: int) -> dict[str, Any]:
        """Return the median milliseconds of decoding, and of a forward, one image at a time with nothing beside it."""
        return self._devices[0].submit(self._pieces, images).result()

    def _pieces(self, images: int) -> dict[str, Any]:
        decoding, forwards = [], []
        for number in range(images):
            started = time.perf_counter()
            pixels = self._pixels(number)
            decoded = time.perf_counter()
            self._forward([pixels])
            decoding.append(decoded - started)
            forwards.append(time.perf_counter() - decoded)
        return {"decode_ms": statistics.median(decoding) * 1e3, "forward_ms": statistics.median(forwards) * 1e3}

    def vector(self, number: int) -> dict[str, Any]:
        """Return one image's vector, to hold the server's against."""
        return {"vector": self._forward([self._pixels(number)])[0].tolist()}

    def _forward(self, pixels: Sequence[NDArray[np.uint8]], copy: int = 0) -> NDArray[np.float32]:
        """Stack and run, as the server's device thread does."""
        return self.backbone.launch(pixels, self.backbone.ref(), copy)()

    def _batches(self, images: int, batch: int) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield the pixels of each batch, at most AHEAD batches being made before they are asked for."""
        coming: deque[Future[NDArray[np.uint8]]] = deque()
        asked = 0
        while asked < images or coming:
            while asked < images and len(coming) < AHEAD * batch:
                coming.append(self._decoders.submit(self._pixels, asked))
                asked += 1
            yield [coming.popleft().result() for _ in range(min(batch, len(coming)))]

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        """Decode as the server does."""
        data = tagged(self._images[number % len(self._images)])
        return pixels_of(data, self.backbone.preprocessing, self._limits, self.backbone.decoding)


if __name__ == "__main__":
    main()
